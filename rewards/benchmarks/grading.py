"""From grades of files to values of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rewards.benchmarks.protocol import Graded, Values


def prompt_mean(graded: Graded, of: Callable[[Values], float], lowest: float = 0.0) -> float:
    """The mean over a prompt's files; one that is missing or could not be judged counts as the lowest score."""
    values = [lowest if value is None else of(value) for value in graded.values]
    return sum(values) / len(values)


def by_tag(
    graded: Iterable[Graded],
    name: str,
    tags: Sequence[str],
    tag_of: Callable[[Graded], str] = lambda one: one.item.tag,
    lowest: float = 0.0,
) -> Mapping[str, list[float]]:
    """Tag -> the mean grade `name` of each of its prompts, for these tags in their order."""
    strata: dict[str, list[float]] = {tag: [] for tag in tags}
    for one in graded:
        strata[tag_of(one)].append(prompt_mean(one, lambda values: values[name], lowest))
    return strata
