"""How often workers are asked whether they live: the turns by themselves, and in a pool."""

from __future__ import annotations

import random

from cluster.pools.heartbeats import PingPace


def test_turns_are_given_out_in_order_and_at_most_so_many_a_second() -> None:
    pace = PingPace(max_per_s=10.0)
    rng = random.Random(0)
    asked = sorted(rng.uniform(0, 100) for _ in range(1500))
    turns = [pace.take_turn(now_s) for now_s in asked]
    assert turns == sorted(turns)
    assert all(turn_s >= now_s for turn_s, now_s in zip(turns, asked, strict=True))
    for first in range(len(turns) - 10):
        assert turns[first + 10] - turns[first] >= 1.0 - 1e-9


def test_a_turn_comes_at_once_when_nobody_else_asks() -> None:
    pace = PingPace(max_per_s=10.0)
    assert [pace.take_turn(now_s) for now_s in (5.0, 5.2, 9.0)] == [5.0, 5.2, 9.0]


def test_no_worker_of_a_pool_waits_longer_than_its_size_allows() -> None:
    """Each of N workers asks for its next turn when the last one has come: N / max_per_s is the longest wait."""
    pace, num_workers = PingPace(max_per_s=10.0), 64
    due = [0.0] * num_workers
    for _ in range(20 * num_workers):
        now_s = min(due)
        worker = due.index(now_s)
        due[worker] = pace.take_turn(now_s)
        assert due[worker] - now_s <= num_workers / 10.0 + 1e-9
