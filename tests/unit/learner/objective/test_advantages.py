"""Advantages and their variants against loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from learner.objective import AdvantageSettings
from learner.objective.advantages import (
    advantages_of,
    batch_advantages,
    centred_advantages,
    group_advantages,
    share_without_spread,
    sum_of_rewards,
)
from tests.slow_loss import (
    slow_batch_advantages,
    slow_centred,
    slow_group_advantages,
    slow_sum_of_rewards,
)

EPSILON = 1e-4


def random_rewards(group_size: int) -> np.ndarray:
    return np.random.default_rng(group_size).normal(0.5, 0.3, (5, group_size))


@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_every_normalization_equals_the_loops(group_size: int) -> None:
    rewards = random_rewards(group_size)
    given, plain = torch.from_numpy(rewards), rewards.tolist()
    for result, expected in (
        (group_advantages(given, EPSILON), slow_group_advantages(plain, EPSILON)),
        (centred_advantages(given), slow_centred(plain)),
        (batch_advantages(given, EPSILON), slow_batch_advantages(plain, EPSILON)),
    ):
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10, atol=1e-14)


def test_advantages_of_a_group_do_not_depend_on_the_others() -> None:
    rewards = torch.tensor([[0.1, 0.9, 0.4], [5.0, -3.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards, EPSILON)[:1], group_advantages(rewards[:1], EPSILON))
    torch.testing.assert_close(centred_advantages(rewards)[:1], centred_advantages(rewards[:1]))


@pytest.mark.parametrize("reward", [0.0, 0.1, 1e6 + 0.1])
def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero_in_every_variant(reward: float) -> None:
    """In float32 the mean of seven times 0.1 is not 0.1."""
    rewards = torch.full((3, 7), reward)
    for normalization in ("group", "group_mean_only", "batch"):
        for normalized in ((), ("one",)):
            settings = AdvantageSettings(EPSILON, normalization, {"one": 2.0}, normalized)
            assert torch.equal(advantages_of(rewards, {"one": rewards}, settings), torch.zeros(3, 7))


def test_the_share_of_groups_without_spread_is_counted() -> None:
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.3, 0.3], [0.2, 0.3]])
    assert share_without_spread(rewards) == 0.5


@pytest.mark.parametrize("shape", [(4,), (3, 1), (2, 3, 4)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    for function in (
        lambda r: group_advantages(r, EPSILON),
        centred_advantages,
        lambda r: batch_advantages(r, EPSILON),
    ):
        with pytest.raises(ValueError, match="num_groups, G"):
            function(torch.zeros(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_infinite_reward_or_a_lone_one_is_refused_with_its_group(bad: float) -> None:
    with pytest.raises(ValueError, match="group 1"):
        group_advantages(torch.tensor([[0.0, 1.0], [0.0, bad]]), EPSILON)


@pytest.mark.parametrize("normalization", ["group", "group_mean_only", "batch"])
@pytest.mark.parametrize("normalized", [(), ("one",)])
def test_a_trajectory_that_is_left_out_has_advantage_zero_and_changes_no_other(
    normalization: Any, normalized: tuple[str, ...]
) -> None:
    rewards = torch.from_numpy(random_rewards(6))
    settings = AdvantageSettings(EPSILON, normalization, {"one": 1.0}, normalized)
    expected = advantages_of(rewards, {"one": rewards}, settings)
    holed = torch.cat([rewards[:, :2], torch.full((5, 1), torch.nan), rewards[:, 2:]], dim=1)
    other = torch.where(holed.isnan(), 7.0, holed)  # another reward than the one that failed may have a value there
    result = advantages_of(holed, {"one": other}, settings)
    assert torch.equal(result[:, 2], torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(torch.cat([result[:, :2], result[:, 3:]], dim=1), expected)
    assert share_without_spread(torch.tensor([[1.0, torch.nan, 1.0], [1.0, torch.nan, 2.0]])) == 0.5


def random_columns() -> dict[str, np.ndarray]:
    """A wide reward, a narrow one that does not apply everywhere, one without any spread."""
    rng = np.random.default_rng(0)
    narrow = 0.3 + 0.001 * rng.random((4, 5))
    narrow[0, 2] = narrow[1] = np.nan
    narrow[2, 1:] = np.nan
    return {"wide": 10 * rng.random((4, 5)), "narrow": narrow, "flat": np.full((4, 5), 0.1)}


@pytest.mark.parametrize("normalized", [("wide", "narrow", "flat"), ("narrow",), ("wide", "flat"), ()])
def test_the_sum_of_rewards_equals_the_loops_whichever_are_normalized(normalized: tuple[str, ...]) -> None:
    columns, weights = random_columns(), {"wide": 1.0, "narrow": 0.5, "flat": 3.0}
    given = {name: torch.from_numpy(column) for name, column in columns.items()}
    expected = slow_sum_of_rewards({n: c.tolist() for n, c in columns.items()}, weights, normalized, EPSILON)
    result = sum_of_rewards(given, weights, normalized, EPSILON)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("normalized", [("wide", "narrow", "flat"), ("narrow",)])
def test_advantages_are_of_the_normalized_rewards_where_any_is(normalized: tuple[str, ...]) -> None:
    columns, weights = random_columns(), {"wide": 1.0, "narrow": 0.5, "flat": 3.0}
    given = {name: torch.from_numpy(column) for name, column in columns.items()}
    combined = slow_sum_of_rewards({n: c.tolist() for n, c in columns.items()}, weights, normalized, EPSILON)
    settings = AdvantageSettings(EPSILON, "batch", weights, normalized)
    result = advantages_of(torch.zeros(4, 5), given, settings)
    expected = slow_batch_advantages(combined, EPSILON)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_a_reward_of_a_tiny_range_is_heard_once_rewards_are_normalized() -> None:
    """The narrow reward orders the group one way, the wide one has noise that orders it the other way."""
    wide = torch.tensor([[0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    narrow = torch.tensor([[0.30, 0.301, 0.302, 0.303]], dtype=torch.float64)
    columns, weights = {"wide": wide, "narrow": narrow}, {"wide": 1.0, "narrow": 1.0}
    plain = advantages_of(wide + narrow, columns, AdvantageSettings(EPSILON))
    heard = advantages_of(wide + narrow, columns, AdvantageSettings(EPSILON, "group", weights, columns))
    assert float(plain[0, 2] - plain[0, 0]) < 0.02
    assert float(heard[0, 2] - heard[0, 0]) > 0.5
    alone = advantages_of(wide + narrow, columns, AdvantageSettings(EPSILON, "group", weights, {"narrow"}))
    assert float(alone[0, 2] - alone[0, 0]) > float(heard[0, 2] - heard[0, 0])


def test_names_shapes_and_infinities_that_do_not_fit_are_refused() -> None:
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match="same names"):
        sum_of_rewards({"a": ones}, {"b": 1.0}, {"a"}, EPSILON)
    with pytest.raises(ValueError, match="same names"):
        sum_of_rewards({}, {}, {"a"}, EPSILON)
    with pytest.raises(ValueError, match=r"normalised, \['b'\], be among them"):
        sum_of_rewards({"a": ones}, {"a": 1.0}, {"b"}, EPSILON)
    with pytest.raises(ValueError, match="alike"):
        sum_of_rewards({"a": ones, "b": torch.ones(2, 4)}, {"a": 1.0, "b": 1.0}, {"a"}, EPSILON)
    for normalized in ({"a"}, set()):
        with pytest.raises(ValueError, match="reward a is infinite"):
            sum_of_rewards({"a": ones * math.inf}, {"a": 1.0}, normalized, EPSILON)
