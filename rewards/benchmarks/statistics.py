"""Scores of a benchmark with their intervals: the bootstrap over prompts.

    value = formula({stratum: mean over its prompts of their values})

    interval: as many prompts of each stratum are drawn with replacement, `NUM_RESAMPLES` times, and the value is
    computed anew from each; its 2.5 % and 97.5 % quantiles. (Efron 1979; strata are kept, as they are fixed by design.)

Over prompts and not over pictures: four pictures of a prompt are no four independent trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Means = Mapping[str, NDArray[np.float64]]
"""Stratum -> means, float [..., k] of k quantities; leading dimensions are resamples."""
Formula = Callable[[Means], NDArray[np.float64]]

NUM_RESAMPLES = 1000
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Measure:
    """One number that a benchmark reports, with what it is made of."""

    name: str
    strata: Mapping[str, NDArray[np.float64]]
    """Stratum -> float [prompts, k]: k quantities of each prompt."""
    formula: Formula = field(repr=False)
    meaning: str = ""
    """For people, where the name does not say it: which defect of an official script it keeps or corrects."""

    def value(self) -> float:
        """The score."""
        return float(self.formula({name: rows.mean(axis=0) for name, rows in self.strata.items()}))

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Bounds of the 95 % interval; both the value itself where one prompt is all there is."""
        rng = np.random.default_rng(seed)
        means: dict[str, NDArray[np.float64]] = {}
        for name, rows in self.strata.items():
            counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=NUM_RESAMPLES)
            means[name] = counts @ rows / len(rows)
        low, high = np.quantile(self.formula(means), QUANTILES)
        return float(low), float(high)

    def to_record(self) -> dict[str, Any]:
        """As it stands in a result."""
        low, high = self.interval()
        num_prompts = sum(len(rows) for rows in self.strata.values())
        record = {"value": self.value(), "low": low, "high": high, "num_prompts": num_prompts}
        return record | ({"meaning": self.meaning} if self.meaning else {})


def weighted(
    name: str, strata: Mapping[str, Sequence[float]], weights: Mapping[str, float], meaning: str = ""
) -> Measure:
    """The weighted mean of the strata's means; strata without prompts are left out, with their weight.

    strata: one value a prompt. weights: of each stratum; any positive sum.
    """
    rows = {key: np.asarray(values, dtype=np.float64)[:, None] for key, values in strata.items() if len(values)}
    total = sum(weights[key] for key in rows)

    def formula(means: Means) -> NDArray[np.float64]:
        result: NDArray[np.float64] = sum((weights[key] * means[key][..., 0] for key in rows), np.zeros(())) / total
        return result

    return Measure(name, rows, formula, meaning)


def mean_of_tags(name: str, strata: Mapping[str, Sequence[float]], meaning: str = "") -> Measure:
    """The unweighted mean of the strata's means."""
    return weighted(name, strata, dict.fromkeys(strata, 1.0), meaning)


def each_tag(strata: Mapping[str, Sequence[float]]) -> list[Measure]:
    """The mean of each stratum by itself, in their order."""
    return [weighted(name, {name: values}, {name: 1.0}) for name, values in strata.items() if len(values)]
