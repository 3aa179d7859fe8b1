"""Group advantages against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from learner.advantages import group_advantages, share_without_spread

EPSILON = 1e-4


def slow_advantages(rewards: list[list[float]], epsilon: float) -> list[list[float]]:
    result = []
    for group in rewards:
        mean = sum(group) / len(group)
        variance = sum((reward - mean) ** 2 for reward in group) / (len(group) - 1)
        result.append([(reward - mean) / (math.sqrt(variance) + epsilon) for reward in group])
    return result


@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_advantages_equal_the_loops(group_size: int) -> None:
    rewards = np.random.default_rng(group_size).normal(0.5, 0.3, (5, group_size))
    result = group_advantages(torch.from_numpy(rewards), EPSILON)
    np.testing.assert_allclose(result.numpy(), slow_advantages(rewards.tolist(), EPSILON), rtol=1e-10)


def test_advantages_of_a_group_do_not_depend_on_the_others() -> None:
    rewards = torch.tensor([[0.1, 0.9, 0.4], [5.0, -3.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards, EPSILON)[:1], group_advantages(rewards[:1], EPSILON))


@pytest.mark.parametrize("reward", [0.0, 0.1, 1e6 + 0.1])
def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero(reward: float) -> None:
    """In float32 the mean of seven times 0.1 is not 0.1."""
    assert torch.equal(group_advantages(torch.full((3, 7), reward), EPSILON), torch.zeros(3, 7))


def test_the_share_of_groups_without_spread_is_counted() -> None:
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.3, 0.3], [0.2, 0.3]])
    assert share_without_spread(rewards) == 0.5


@pytest.mark.parametrize("shape", [(4,), (3, 1), (2, 3, 4)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="num_groups, G"):
        group_advantages(torch.zeros(shape), EPSILON)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_with_its_group(bad: float) -> None:
    with pytest.raises(ValueError, match="group 1"):
        group_advantages(torch.tensor([[0.0, 1.0], [0.0, bad]]), EPSILON)
