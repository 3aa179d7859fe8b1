"""Scores and intervals against slow resampling, and against what a normal approximation gives."""

from __future__ import annotations

import numpy as np
import pytest

from rewards.benchmarks.statistics import Measure, mean_of_tags, weighted


def test_the_overall_score_weighs_tags_and_not_prompts() -> None:
    measure = mean_of_tags("overall", {"a": [1.0, 1.0, 0.0, 0.0], "b": [1.0]})
    assert measure.value() == 0.75
    assert weighted("w", {"a": [1.0], "b": [0.0]}, {"a": 3, "b": 1}).value() == 0.75
    assert weighted("w", {"a": [1.0], "b": []}, {"a": 3, "b": 1}).value() == 1.0


def test_the_interval_is_that_of_a_slow_bootstrap() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random(60), (rng.random(40) < 0.3).astype(float)
    low, high = mean_of_tags("overall", {"a": list(a), "b": list(b)}).interval()
    draws = []
    for _ in range(4000):
        own = [sum(values[rng.integers(len(values))] for _ in values) / len(values) for values in (a, b)]
        draws.append(sum(own) / 2)
    slow_low, slow_high = np.quantile(draws, (0.025, 0.975))
    assert low == pytest.approx(slow_low, abs=0.01)
    assert high == pytest.approx(slow_high, abs=0.01)
    error = np.sqrt(a.var() / len(a) + b.var() / len(b)) / 2
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_four_equal_pictures_of_a_prompt_are_one_trial() -> None:
    prompts = [float(index % 2) for index in range(30)]
    wide = mean_of_tags("m", {"a": prompts}).interval()
    narrow = mean_of_tags("m", {"a": prompts * 4}).interval()
    assert wide[1] - wide[0] > 1.7 * (narrow[1] - narrow[0])


def test_a_formula_may_be_no_mean() -> None:
    rows = np.array([[2.0, 4.0], [1.0, 6.0]])
    ratio = Measure("ratio", {"all": rows}, lambda means: means["all"][..., 0] / means["all"][..., 1])
    assert ratio.value() == 0.3
    assert ratio.interval() == (pytest.approx(1 / 6), pytest.approx(0.5))
    assert ratio.to_record()["num_prompts"] == 2
