"""In which order nodes load a weight version, so that it does not all come out of one network card.

Ray's object store fetches an object from a node that has it. When N nodes ask at once, only the learner's node has
it, and sends N copies. In waves of 1, 2, 4, 8, … nodes, those that have it serve the next wave: the time grows with
the logarithm of N (a binomial broadcast), and the learner's node sends at most log2(N) + 1 copies.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)


def waves(items: Iterable[tuple[str, Item]]) -> Iterator[list[Item]]:
    """Groups of items to serve one after another; items: (node, item), where the node may be "" for unknown.

    First one item of each node, in waves that double; then all others at once, whose nodes have it by then. Items of
    an unknown node count as alone on theirs.
    """
    first: dict[str, Item] = {}
    rest: list[Item] = []
    unknown: list[Item] = []
    for node, item in items:
        if not node:
            unknown.append(item)
        elif node in first:
            rest.append(item)
        else:
            first[node] = item
    heads = [*first.values(), *unknown]
    start, size = 0, 1
    while start < len(heads):
        yield heads[start : start + size]
        start, size = start + size, size * 2
    if rest:
        yield rest
