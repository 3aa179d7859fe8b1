"""The health of the reward signal: what one needs to see a reward saturate, or be hacked. Pure functions.

Of each reward k, over the pictures that it applies to (x: its scores as given, without its weight):

    reward/K               mean of x
    reward/K/std_in_group  unbiased standard deviation of x within a group, mean over groups of two or more:
                           what the advantages are made of
    reward/K/no_spread     share of those groups whose x are all equal: they teach nothing of K
    reward/K/at_min, …/at_max
                           share of x that lie at the least and at the greatest value of the step; near 1 at
                           one end, the reward has nothing left to say. A range that is known is not needed.
    reward/K/perfect       share of x that are full marks, 1: pictures right in every detail, for rewards from 0 to 1
    reward_correlation/J~K Pearson's r of x_J and x_K less their groups' means, over all pictures that both apply
                           to: below 0, one grows at the other's cost

Less the groups' means, since prompts differ in difficulty: rewards that agree on which prompts are easy
may still disagree on every picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rollout.records import ScoredGroup

SPREAD_FLOOR: Final = 1e-6
"""Standard deviations up to this are rounding."""

FULL_MARKS: Final = 0.999
"""Scores from this are full marks of a reward from 0 to 1: they come as float32, and sums of shares round."""

Float64Array = NDArray[np.float64]


def reward_health(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """All keys above for the groups of one step. NaN where there is nothing to measure."""
    names = list(groups[0].reward_columns)
    tables = {name: [group.reward_columns[name].astype(np.float64) for group in groups] for name in names}
    metrics: dict[str, float] = {}
    for name, columns in tables.items():
        metrics |= {f"reward/{name}{suffix}": value for suffix, value in _health_of_one(columns).items()}
    for one, other in combinations(names, 2):
        metrics[f"reward_correlation/{one}~{other}"] = _correlation(tables[one], tables[other])
    return metrics


def _health_of_one(columns: Sequence[Float64Array]) -> dict[str, float]:
    applicable = [column[np.isfinite(column)] for column in columns]
    values = np.concatenate(applicable)
    stds = np.array([column.std(ddof=1) for column in applicable if len(column) > 1])
    is_flat = stds <= SPREAD_FLOOR
    return {
        "": _mean(values),
        "/std_in_group": _mean(stds),
        "/no_spread": _mean(is_flat.astype(np.float64)),
        "/at_min": _mean((values == values.min(initial=math.inf)).astype(np.float64)),
        "/at_max": _mean((values == values.max(initial=-math.inf)).astype(np.float64)),
        "/perfect": share_perfect(values),
    }


def share_perfect(scores: NDArray[np.floating[Any]]) -> float:
    """Share of the scores [N] that are full marks (`FULL_MARKS` or more); NaN where there is none."""
    return _mean((scores >= FULL_MARKS).astype(np.float64))


def _correlation(ones: Sequence[Float64Array], others: Sequence[Float64Array]) -> float:
    """Pearson's r of what is left without the groups' means; NaN where either has no spread."""
    pairs = [np.stack(pair)[:, np.isfinite(pair[0]) & np.isfinite(pair[1])] for pair in zip(ones, others, strict=True)]
    centred = np.concatenate(
        [_EMPTY, *(pair - pair.mean(axis=1, keepdims=True) for pair in pairs if pair.size)], axis=1
    )
    norms = np.sqrt((centred**2).sum(axis=1))
    if (norms <= SPREAD_FLOOR).any():
        return math.nan
    return float((centred[0] * centred[1]).sum() / norms.prod())


def _mean(values: Float64Array) -> float:
    return float(values.mean()) if len(values) else math.nan


_EMPTY: Final = np.empty((2, 0))
