"""rewards/combine.py: the weighted sum, its mask, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from configs.errors import NoRewardAppliesError, RewardError
from rewards.combine import combine, explain
from rollout.records import Score


def test_the_combined_reward_is_the_weighted_sum() -> None:
    scores = {"hps": [Score(0.25), Score(0.5)], "shapes": [Score(1.0), Score(0.0)]}
    combined = combine(scores, {"shapes": 1.0, "hps": 4.0})
    assert combined.rewards.dtype == np.float32
    np.testing.assert_allclose(combined.rewards, [2.0, 2.0])
    np.testing.assert_allclose(combined.columns["hps"], [0.25, 0.5])
    assert combined.columns["hps"].dtype == np.float32


def test_a_reward_that_does_not_apply_is_left_out_and_not_scored_zero() -> None:
    inapplicable = [Score(None)] * 2
    combined = combine({"hps": [Score(0.25), Score(0.5)], "git_vqa": inapplicable}, {"hps": 1.0, "git_vqa": -3.0})
    np.testing.assert_allclose(combined.rewards, [0.25, 0.5])
    assert np.isnan(combined.columns["git_vqa"]).all()
    assert combined.explanations == ("hps 0.25", "hps 0.50")


@pytest.mark.parametrize("scores", [{"hps": [Score(0.5)]}, {"hps": [Score(0.5)], "orm": None}])
def test_a_missing_reward_is_an_error_that_names_it(scores: dict[str, list[Score] | None]) -> None:
    with pytest.raises(RewardError, match="'orm' is missing"):
        combine(scores, {"hps": 1.0, "orm": 1.0})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_an_error_that_names_its_reward(value: float) -> None:
    with pytest.raises(RewardError, match="'orm' gave picture 1"):
        combine({"hps": [Score(0.5)] * 2, "orm": [Score(0.5), Score(value)]}, {"hps": 1.0, "orm": 1.0})


def test_a_picture_to_which_no_reward_applies_is_an_error() -> None:
    with pytest.raises(RewardError, match="none of the rewards git_vqa applies to the prompt of picture 1"):
        combine({"git_vqa": [Score(0.5), Score(None)]}, {"git_vqa": 1.0})


def test_a_picture_that_a_reward_could_not_score_has_no_reward_and_its_neighbours_keep_theirs() -> None:
    failed = RewardError("reward 'orm' failed on a:1: no luck")
    scores = {"hps": [Score(0.5), Score(0.25), Score(1.0)], "orm": [Score(1.0), failed, Score(None)]}
    combined = combine(scores, {"hps": 1.0, "orm": 2.0})
    np.testing.assert_allclose(combined.rewards, [2.5, np.nan, 1.0])
    np.testing.assert_allclose(combined.columns["orm"], [1.0, np.nan, np.nan])
    assert combined.errors == {1: failed}
    assert combined.explanations == ("hps 0.50 | orm 1.00", "hps 0.25 | orm failed", "hps 1.00")


def test_a_reward_of_weight_zero_is_watched_and_costs_nothing() -> None:
    failed = RewardError("reward 'orm' failed on a:1: no luck")
    combined = combine({"hps": [Score(0.5)] * 2, "orm": [Score(0.25), failed]}, {"hps": 1.0, "orm": 0.0})
    np.testing.assert_allclose(combined.rewards, [0.5, 0.5])
    np.testing.assert_allclose(combined.columns["orm"], [0.25, np.nan])
    assert combined.errors == {}
    np.testing.assert_allclose(combine({"hps": [Score(0.5)], "orm": None}, {"hps": 1.0, "orm": 0.0}).rewards, [0.5])
    with pytest.raises(NoRewardAppliesError, match="none of the rewards hps applies"):
        combine({"hps": [Score(None)], "orm": [Score(0.25)]}, {"hps": 1.0, "orm": 0.0})


def test_columns_of_different_length_are_an_error() -> None:
    with pytest.raises(RewardError, match="different numbers of pictures"):
        combine({"hps": [Score(0.5)] * 2, "orm": [Score(0.5)]}, {"hps": 1.0, "orm": 1.0})


def test_a_score_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="no weight is given for reward orm"):
        combine({"hps": [Score(0.5)], "orm": [Score(0.5)]}, {"hps": 1.0})


def test_a_sum_beyond_float32_is_an_error() -> None:
    with pytest.raises(RewardError, match="not finite in float32"):
        combine({"hps": [Score(3e38)]}, {"hps": 10.0})


def test_an_explanation_shows_every_reward_and_its_short_parts() -> None:
    shapes = Score(0.834, parts={"found": ["red star", "ring"], "missing": [], "boxes": [[0, 0, 1, 1]]})
    orm = Score(0.5, parts={"yes": 0.5, "attempts": 3, "blank": False})
    combined = combine({"shapes": [shapes], "orm": [orm]}, {"shapes": 1.0, "orm": 1.0})
    assert combined.explanations == ("shapes 0.83: found red star, ring | orm 0.50: yes 0.50; attempts 3; blank no",)


def test_a_long_explanation_is_cut() -> None:
    text = explain("shapes", Score(1.0, parts={f"object {i}": "ok" for i in range(99)}))
    assert text.endswith("...")
    assert len(text) < 250
