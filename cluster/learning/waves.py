"""In which order nodes load a weight version, so that it does not all come out of one network card.

Ray's object store fetches an object from a node that has it. When N nodes ask at once, only the learner's node has
it, and sends N copies. In waves of 1, 2, 4, 8, … nodes, those that have it serve the next wave: the time grows with
the logarithm of N (a binomial broadcast), and the learner's node sends at most log2(N) + 1 copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def waves(items: Iterable[tuple[str, Item]]) -> Iterator[list[Item]]:
    """Groups of items to serve one after another; items: (node, item), where the node may be "" for unknown.

    In waves of nodes that double, each with all of its items: what one of them has fetched, the others of its node map.
    Items of an unknown node count as alone on theirs.
    """
    nodes: dict[str, list[Item]] = {}
    unknown: list[list[Item]] = []
    for node, item in items:
        if node:
            nodes.setdefault(node, []).append(item)
        else:
            unknown.append([item])
    groups = [*nodes.values(), *unknown]
    start, size = 0, 1
    while start < len(groups):
        yield [item for group in groups[start : start + size] for item in group]
        start, size = start + size, size * 2
