"""The scaling policy: when a pool grows, when it shrinks, and when it is left alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest

from cluster.pools.scaling import Load, ScalingPolicy

EVERY_S = 2.0
BUSY: Mapping[str, Any] = {"num_idle": 0, "num_calls": 16, "is_awaited": True}
IDLE: Mapping[str, Any] = {"num_idle": 1, "num_calls": 0, "is_awaited": False}
FULL_AND_UNHURRIED: Mapping[str, Any] = {"num_idle": 0, "num_calls": 16, "is_awaited": False}


def look(number: int, size: int, **fields: Any) -> Load:
    return Load(**{"time_s": number * EVERY_S, "size": size, "num_joining": 0, "room": 9, **fields})


def sizes(
    seen: Callable[[int], Mapping[str, Any]], num_looks: int, size: int = 1, min_size: int = 1, max_size: int = 8
) -> list[int]:
    """The size after each look, when newcomers start at once."""
    policy = ScalingPolicy(min_size, max_size, grow_after_s=10.0, shrink_after_s=60.0)
    history = []
    for number in range(num_looks):
        size = policy.size_for(look(number, size, **seen(number)))
        history.append(size)
    return history


def test_a_pool_that_is_the_bottleneck_grows_by_half_once_the_time_is_over() -> None:
    assert sizes(lambda number: BUSY, 6, size=4) == [4, 4, 4, 4, 6, 6]


def test_a_pool_grows_to_its_maximum_and_not_beyond() -> None:
    assert max(sizes(lambda number: BUSY, 200, max_size=5)) == 5


def test_without_room_in_the_cluster_nothing_grows() -> None:
    assert set(sizes(lambda number: {**BUSY, "room": 0}, 50)) == {1}


def test_a_pool_does_not_grow_beyond_the_calls_that_there_are() -> None:
    assert max(sizes(lambda number: {**BUSY, "num_calls": 3}, 50)) == 3


def test_a_busy_pool_whose_work_nobody_waits_for_is_left_alone() -> None:
    assert set(sizes(lambda number: FULL_AND_UNHURRIED, 100, size=3)) == {3}


def test_a_pool_with_idle_workers_shrinks_one_by_one_to_its_minimum() -> None:
    history = sizes(lambda number: IDLE, 200, size=4, min_size=2)
    assert history[:29] == [4] * 29
    assert [size for size, before in zip(history[1:], history, strict=False) if size != before] == [3, 2]
    assert history[-1] == 2


def test_a_worker_that_is_idle_only_now_and_then_stays() -> None:
    assert set(sizes(lambda number: IDLE if number % 10 else FULL_AND_UNHURRIED, 200, size=4)) == {4}


def test_a_pool_that_is_short_of_hands_only_now_and_then_neither_grows_nor_shrinks() -> None:
    assert set(sizes(lambda number: IDLE if number % 4 else BUSY, 300, size=4)) == {4}


def test_nothing_is_decided_while_newcomers_start() -> None:
    assert set(sizes(lambda number: {**BUSY, "num_joining": 1}, 50, size=2)) == {2}


def test_a_change_is_judged_by_what_comes_after_it() -> None:
    history = sizes(lambda number: BUSY, 60)
    changes = [number for number in range(1, 60) if history[number] != history[number - 1]]
    assert min(after - before for before, after in pairwise(changes)) >= 5


def test_no_load_takes_a_pool_out_of_its_bounds_or_beyond_the_room() -> None:
    rng = random.Random(0)
    for _ in range(200):
        low = rng.randint(1, 4)
        high = low + rng.randint(0, 5)
        policy = ScalingPolicy(low, high, grow_after_s=rng.choice([2.0, 6.0]), shrink_after_s=rng.choice([6.0, 20.0]))
        size = low
        for number in range(100):
            room = rng.randint(0, 3)
            load = look(number, size, **rng.choice([BUSY, BUSY, IDLE, FULL_AND_UNHURRIED]), room=room)
            after = policy.size_for(load)
            assert low <= after <= high
            assert -1 <= after - size <= room
            size = after


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3, 2)])
def test_sizes_that_are_no_range_are_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="no range of sizes"):
        ScalingPolicy(low, high, 1.0, 1.0)
