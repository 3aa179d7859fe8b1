"""Learner ranks that freeze, die or wait for each other for ever are noticed within bounded time."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError

from cluster.actors.learner import Stage
from cluster.benchmarks.local_actors import LocalActor
from cluster.learning.pulses import Pulses, SilentRankError, StepTimes

WAIT_S = 10.0


class Rank:
    """Answers pulses while it `runs`."""

    def __init__(self) -> None:
        self.runs = asyncio.Event()
        self.runs.set()
        self.num_pulses = 0
        self.stage: Stage | None = None

    async def pulse(self) -> Stage | None:
        await self.runs.wait()
        self.num_pulses += 1
        return self.stage


async def seen(ranks: list[Rank]) -> None:
    async with asyncio.timeout(WAIT_S):
        while any(rank.num_pulses < 2 for rank in ranks):
            await asyncio.sleep(0.001)


async def test_a_rank_that_freezes_is_named_within_the_heartbeats_time_out() -> None:
    ranks = [Rank(), Rank()]
    watching = asyncio.create_task(Pulses([LocalActor(rank) for rank in ranks], 0.005, 0.05).watch())
    await seen(ranks)
    ranks[1].runs.clear()
    with pytest.raises(SilentRankError, match=r"rank 1 was silent for 0\.05 s"):
        await asyncio.wait_for(watching, WAIT_S)


async def test_a_rank_that_has_not_answered_yet_is_not_judged() -> None:
    ranks = [Rank(), Rank()]
    ranks[1].runs.clear()
    watching = asyncio.create_task(Pulses([LocalActor(rank) for rank in ranks], 0.005, 0.02).watch())
    await asyncio.sleep(0.1)
    assert not watching.done()
    ranks[1].runs.set()
    await seen(ranks)
    watching.cancel()


async def test_a_rank_that_dies_between_its_calls_is_noticed() -> None:
    rank = Rank()
    actor = LocalActor(rank)
    watching = asyncio.create_task(Pulses([actor], 0.005, 0.05).watch())
    await seen([rank])
    actor.kill()
    with pytest.raises(ActorDiedError):
        await asyncio.wait_for(watching, WAIT_S)


async def test_long_work_is_heard_of_and_ends_when_no_stage_gets_on() -> None:
    rank, heard = Rank(), list[Stage]()
    rank.stage = Stage("vq", 1, 900, {"loss": 2.0})
    watching = asyncio.create_task(Pulses([LocalActor(rank)], 0.005, 5.0).watch(heard.append, stall_s=0.1))
    await seen([rank])
    rank.stage = Stage("vq", 2, 900, {"loss": 1.0})
    with pytest.raises(SilentRankError, match=r"it stands at vq 2/900 for 0\.1 s"):
        await asyncio.wait_for(watching, WAIT_S)
    assert [stage.done for stage in heard] == [1, 2]


def test_a_step_may_take_a_few_times_as_long_as_steps_have_taken() -> None:
    times = StepTimes()
    assert times.bound_s(60.0, 1800.0) == 1800.0, "nothing is known yet"
    for duration_s in (90.0, 20.0, 22.0):
        times.add(duration_s)
    assert times.bound_s(60.0, 1800.0) == pytest.approx(5 * 22.0)
    assert times.bound_s(150.0, 1800.0) == 150.0, "heartbeats find out more than this first"
    assert times.bound_s(60.0, 100.0) == 100.0, "run.step_timeout_s is the most"
