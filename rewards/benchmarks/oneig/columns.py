"""Means over the cells of grids, in two columns: black cells left out as the official scripts do, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from configs.errors import RewardError
from rewards.benchmarks.oneig.records import NUM_CELLS
from rewards.benchmarks.protocol import Answer, Graded, Values
from rewards.benchmarks.statistics import Measure, mean_of_tags


def found_of(answer: Answer, name: str, expected: Callable[[int], int]) -> list[Any]:
    """What was found of a grid. expected: number of drawn cells -> how much that is. Raises RewardError for less."""
    found, num_black = answer.get(name), answer.get("num_black")
    if not isinstance(found, list) or not isinstance(num_black, int) or len(found) != expected(NUM_CELLS - num_black):
        raise RewardError(f"no {name} of a picture")
    return found


def mean_values(scores: Sequence[float]) -> Values:
    """score: the mean; sum and number: what the corrected column is made of."""
    return {"score": sum(scores) / len(scores) if scores else 0.0, "sum": sum(scores), "number": float(len(scores))}


def official_mean(name: str, graded: Sequence[Graded], meaning: str = "") -> list[Measure]:
    """The mean over prompts of which something was drawn; nothing where there is none.

    A picture that is missing or could not be scored counts 0, here as in the corrected column.
    """
    values = [one.values[0] for one in graded]
    drawn = [0.0 if one is None else one["score"] for one in values if one is None or one["number"]]
    return [mean_of_tags(name, {"prompts": drawn}, meaning)] if drawn else []


def corrected_mean(name: str, graded: Sequence[Graded], number: int, meaning: str) -> Measure:
    """The mean over all prompts, of all `number` parts of a picture."""
    values = [one.values[0] for one in graded]
    every = [0.0 if one is None else one["sum"] / number for one in values]
    return mean_of_tags(f"{name}_corrected", {"prompts": every}, meaning)
