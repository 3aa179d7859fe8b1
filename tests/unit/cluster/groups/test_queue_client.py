"""The trajectory queue outlives its actor, whether that dies or only says nothing more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.actors.queue import TrajectoryQueueActor
from cluster.benchmarks.local_actors import LocalActor
from cluster.groups import QueueClient
from cluster.groups.queue_client import MAX_REPLACEMENTS
from configs.errors import RunError
from configs.schema import RunConfig
from rollout.records import ScoredGroup, TrajectoryBatch
from tests.records import make_scored_group

WAIT_S = 10.0


class Freezing(TrajectoryQueueActor):
    """A queue that answers nothing while it is frozen."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.runs = asyncio.Event()
        self.runs.set()

    async def put(self, group: ScoredGroup) -> bool:
        await self.runs.wait()
        return await super().put(group)

    async def get_batch(self, step: int) -> tuple[int, TrajectoryBatch]:
        await self.runs.wait()
        return await super().get_batch(step)

    async def num_queued(self) -> int:
        await self.runs.wait()
        return await super().num_queued()


class Scene:
    """A client, its actors in the order of their birth, and what it told."""

    def __init__(self, heartbeat_s: float = 0.01) -> None:
        self.queues: list[Freezing] = []
        self.actors: list[LocalActor] = []
        self.notes: list[str] = []
        self.stillborn = False
        self.head_is_back = threading.Event()
        self.head_is_back.set()
        config = RunConfig.model_validate(
            {
                "model": {"path": "org/model", "dtype": "float32"},
                "data": {"train": "shapes:train"},
                "rewards": [{"name": "shapes"}],
                "algorithm": {"groups_per_step": 2, "group_size": 8, "max_staleness": 1},
                "cluster": {"heartbeat_s": heartbeat_s, "heartbeat_timeout_s": max(0.05, heartbeat_s)},
            }
        )
        self.client = QueueClient(config, "run", 0, self.notes.append, self._spawn, LocalActor.kill)

    def _spawn(self, config: RunConfig, name: str, first_step: int) -> Any:
        self.head_is_back.wait(WAIT_S)
        self.queues.append(Freezing(config.max_queued_groups, config.algorithm.groups_per_step, first_step))
        self.actors.append(LocalActor(self.queues[-1]))
        if self.stillborn:
            self.actors[-1].kill()
        return self.actors[-1]

    async def batch(self, step: int) -> list[int]:
        batch = await asyncio.wait_for(self.client.get_batch(step), WAIT_S)
        return [group.rollout.request.sequence for group in (await batch).groups]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    await scene.client.start()
    yield scene
    await scene.client.close()


async def test_while_rays_head_does_not_take_the_first_actor_other_work_goes_on() -> None:
    scene = Scene()
    scene.head_is_back.clear()
    starting = asyncio.create_task(scene.client.start())
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not starting.done()
    scene.head_is_back.set()
    await asyncio.wait_for(starting, WAIT_S)
    for sequence in (0, 1):
        await scene.client.put(make_scored_group(sequence))
    assert await scene.batch(0) == [0, 1]
    await scene.client.close()


async def test_an_actor_that_comes_when_nobody_wants_it_any_more_is_ended() -> None:
    scene = Scene()
    scene.head_is_back.clear()
    starting = asyncio.create_task(scene.client.start())
    await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.wait({starting})
    await scene.client.close()
    scene.head_is_back.set()
    async with asyncio.timeout(WAIT_S):
        while not scene.actors or not scene.actors[0].is_dead:
            await asyncio.sleep(0.001)


async def test_a_frozen_queue_is_noticed_and_its_groups_are_in_the_next_one(scene: Scene) -> None:
    for sequence in (0, 1, 2):
        await scene.client.put(make_scored_group(sequence))
    scene.queues[0].runs.clear()
    assert await scene.batch(0) == [0, 1]
    assert len(scene.queues) == 2
    assert any("was silent for 0.05 s" in note and "filled with the 3 groups" in note for note in scene.notes)
    await scene.client.put(make_scored_group(3))
    assert await scene.batch(1) == [2, 3]


async def test_a_put_that_a_frozen_queue_has_taken_goes_on_with_the_next_one(scene: Scene) -> None:
    scene.queues[0].runs.clear()
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(scene.client.put(make_scored_group(sequence)) for sequence in (0, 1)))
    assert await scene.batch(0) == [0, 1]


async def test_a_queue_that_dies_while_nobody_asks_is_replaced_by_its_heartbeat(scene: Scene) -> None:
    await scene.client.put(make_scored_group(0))
    scene.actors[0].kill()
    async with asyncio.timeout(WAIT_S):
        while len(scene.queues) < 2 or not await scene.queues[1].num_queued():
            await asyncio.sleep(0.001)
    await scene.client.put(make_scored_group(1))
    assert await scene.batch(0) == [0, 1]


async def test_deaths_between_batches_do_not_add_up_over_a_run(scene: Scene) -> None:
    for step in range(MAX_REPLACEMENTS + 2):
        for sequence in (2 * step, 2 * step + 1):
            await scene.client.put(make_scored_group(sequence))
        scene.actors[-1].kill()
        assert await scene.batch(step) == [2 * step, 2 * step + 1]


async def test_a_queue_that_dies_again_and_again_is_an_error_for_whoever_waits(scene: Scene) -> None:
    waiting = asyncio.create_task(scene.client.get_batch(0))
    await asyncio.sleep(0)
    scene.stillborn = True
    scene.actors[0].kill()
    with pytest.raises(RunError, match=f"the trajectory queue died {MAX_REPLACEMENTS + 1} times before step 0"):
        await asyncio.wait_for(waiting, WAIT_S)
    with pytest.raises(RunError, match="the trajectory queue died"):
        await asyncio.wait_for(scene.client.put(make_scored_group(0)), WAIT_S)
