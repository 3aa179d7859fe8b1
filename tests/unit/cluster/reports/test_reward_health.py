"""The health of the reward signal, against loops written straight from its definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from cluster.reports.reward_health import reward_health
from rollout.records import ScoredGroup
from tests.records import make_scored_group


def group(**columns: Sequence[float]) -> ScoredGroup:
    size = len(next(iter(columns.values())))
    tables = {name: np.array(column, np.float32) for name, column in columns.items()}
    return replace(make_scored_group(0, [0.0] * size), reward_columns=tables)


def slow_correlation(groups: Sequence[ScoredGroup], one: str, other: str) -> float:
    """Pearson's r within groups, by loops over the pictures that both apply to."""
    xs, ys = [], []
    for scored in groups:
        pairs = [
            (float(x), float(y))
            for x, y in zip(scored.reward_columns[one], scored.reward_columns[other], strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]
        for x, y in pairs:
            xs.append(x - sum(pair[0] for pair in pairs) / len(pairs))
            ys.append(y - sum(pair[1] for pair in pairs) / len(pairs))
    covariance = sum(x * y for x, y in zip(xs, ys, strict=True))
    return covariance / math.sqrt(sum(x * x for x in xs) * sum(y * y for y in ys))


def random_groups(rng: np.random.Generator) -> list[ScoredGroup]:
    """Two correlated rewards, of which the second applies to three pictures in four."""
    groups = []
    for _ in range(6):
        a = rng.normal(rng.normal(), 1.0, 8)
        b = 0.5 * a + rng.normal(0.0, 0.5, 8)
        b[rng.random(8) < 0.25] = np.nan
        groups.append(group(a=a, b=b))
    return groups


def test_spread_and_correlation_are_those_of_the_slow_loops() -> None:
    groups = random_groups(np.random.default_rng(0))
    health = reward_health(groups)
    columns = [[float(x) for x in g.reward_columns["b"] if math.isfinite(x)] for g in groups]
    stds = [float(np.std(column, ddof=1)) for column in columns if len(column) > 1]
    assert health["reward/b"] == pytest.approx(np.mean([x for column in columns for x in column]), rel=1e-6)
    assert health["reward/b/std_in_group"] == pytest.approx(np.mean(stds), rel=1e-6)
    assert health["reward_correlation/a~b"] == pytest.approx(slow_correlation(groups, "a", "b"), rel=1e-6)


def test_a_reward_that_only_tells_prompts_apart_has_no_spread_and_correlates_with_nothing() -> None:
    groups = [group(easy=[1.0, 1.0], a=[0.0, 0.5]), group(easy=[0.0, 0.0], a=[0.7, 0.2])]
    health = reward_health(groups)
    assert health["reward/easy"] == 0.5
    assert health["reward/easy/no_spread"] == 1.0
    assert health["reward/easy/std_in_group"] == 0.0
    assert math.isnan(health["reward_correlation/easy~a"])


def test_rewards_that_pull_against_each_other_have_a_correlation_of_minus_one() -> None:
    groups = [group(a=[0.0, 1.0], b=[5.0, 4.0]), group(a=[0.3, 0.1], b=[0.0, 0.2])]
    assert reward_health(groups)["reward_correlation/a~b"] == pytest.approx(-1.0)


def test_saturation_is_the_share_of_scores_at_either_end() -> None:
    health = reward_health([group(a=[1.0, 1.0, 1.0, 0.25]), group(a=[1.0, 0.5, np.nan, 0.25])])
    assert health["reward/a/at_max"] == pytest.approx(4 / 7)
    assert health["reward/a/at_min"] == pytest.approx(2 / 7)


def test_full_marks_are_the_share_of_ones_whatever_the_greatest_score_is() -> None:
    groups = [group(a=[1.0, 1.0, 0.9, 0.25], b=[0.3] * 4), group(a=[1.0, 0.5, np.nan, 0.25], b=[0.3] * 4)]
    health = reward_health(groups)
    assert health["reward/a/perfect"] == pytest.approx(3 / 7)
    assert health["reward/b/perfect"] == 0


def test_half_of_the_groups_without_spread_are_half() -> None:
    groups = [group(a=[0.5, 0.5]), group(a=[0.5, 0.75]), group(a=[1.0, np.nan])]
    assert reward_health(groups)["reward/a/no_spread"] == 0.5  # one picture has no spread to speak of


def test_a_reward_that_applies_nowhere_has_no_health() -> None:
    health = reward_health([group(a=[0.0, 1.0], b=[np.nan, np.nan])])
    assert all(math.isnan(value) for key, value in health.items() if key.startswith(("reward/b", "reward_corr")))
    assert health["reward/a"] == 0.5
