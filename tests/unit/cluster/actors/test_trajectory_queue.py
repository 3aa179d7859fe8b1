"""The trajectory queue hands out whole steps in order, is bounded, and cannot lock itself out."""

from __future__ import annotations

import asyncio

import pytest

from cluster.actors.trajectory_queue import TrajectoryQueue
from tests.records import make_scored_group

WAIT_S = 0.05


async def test_a_batch_holds_the_groups_of_its_step_in_order_of_sequence() -> None:
    queue = TrajectoryQueue(max_groups=6, groups_per_step=3)
    for sequence in (4, 2, 0, 1):
        assert await queue.put(make_scored_group(sequence))
    batch = await asyncio.wait_for(queue.get_batch(0), 1)
    assert batch.step == 0
    assert [group.rollout.request.sequence for group in batch.groups] == [0, 1, 2]
    assert queue.num_queued() == 1


async def test_a_batch_waits_for_its_last_group() -> None:
    queue = TrajectoryQueue(max_groups=4, groups_per_step=2)
    waiting = asyncio.create_task(queue.get_batch(0))
    await queue.put(make_scored_group(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    await queue.put(make_scored_group(0))
    assert (await asyncio.wait_for(waiting, 1)).num_trajectories == 4


async def test_a_group_rolled_twice_is_kept_once() -> None:
    queue = TrajectoryQueue(max_groups=4, groups_per_step=2)
    assert await queue.put(make_scored_group(0))
    assert not await queue.put(make_scored_group(0))
    await queue.put(make_scored_group(1))
    await queue.get_batch(0)
    assert not await queue.put(make_scored_group(1))
    assert queue.num_queued() == 0


async def test_early_groups_of_a_later_step_never_lock_out_a_late_group_of_this_one() -> None:
    queue = TrajectoryQueue(max_groups=3, groups_per_step=2)
    await queue.put(make_scored_group(2))
    blocked = asyncio.create_task(queue.put(make_scored_group(3)))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(blocked), WAIT_S)
    await asyncio.wait_for(queue.put(make_scored_group(0)), 1)
    await asyncio.wait_for(queue.put(make_scored_group(1)), 1)
    assert queue.num_queued() == 3
    await queue.get_batch(0)
    assert await asyncio.wait_for(blocked, 1)
    assert [group.rollout.request.sequence for group in (await queue.get_batch(1)).groups] == [2, 3]


async def test_steps_are_asked_for_in_order() -> None:
    queue = TrajectoryQueue(max_groups=2, groups_per_step=2, first_step=5)
    with pytest.raises(ValueError, match="step 4 was asked for, but the next one is 5"):
        await queue.get_batch(4)


def test_a_queue_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold one batch of 3"):
        TrajectoryQueue(max_groups=2, groups_per_step=3)
