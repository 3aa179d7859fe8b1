"""A worker dies inside a broadcast: what goes on around NCCL, which waits for ever. The broadcast only pretends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cluster.benchmarks.local_actors import LocalActor
from cluster.learning import NcclSync
from cluster.learning.learner_group import LearnerLostError
from cluster.pools import ActorPool, Patience, PoolHooks
from configs.errors import WeightSyncError
from configs.schema import WeightSyncConfig
from rollout.records import WeightVersion

WAIT_S = 10.0
TIMEOUT_S = 1.0


class Rank:
    """One call at a time, but for `give_up_collective`, as the learner's rank 0."""

    def __init__(self, gives_up: bool = True) -> None:
        self.gives_up = gives_up
        self.is_given_up = asyncio.Event()
        self.turn = asyncio.Lock()

    async def free_port(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    async def weight_layout(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return [("w", "float32", (4,))]

    async def join_collective(self, *arguments: Any) -> None:
        """All join."""

    async def send_collective(self, version: int) -> None:
        async with self.turn:
            await self.is_given_up.wait()
            raise WeightSyncError("the weight broadcast was given up")

    async def give_up_collective(self) -> None:
        if self.gives_up:
            self.is_given_up.set()

    async def export_weights(self, version: int) -> int:
        async with self.turn:
            return version


class Worker:
    """Answers nothing while its engine is in a broadcast, which never ends."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()

    async def ping(self) -> str:
        await self.free.wait()
        return "node"

    async def join_collective(self, *arguments: Any) -> None:
        """All join."""

    async def receive_collective(self, *arguments: Any) -> None:
        self.free.clear()
        await asyncio.Event().wait()

    async def update_weights(self, version: WeightVersion, buckets: Any) -> WeightVersion:
        await self.free.wait()
        return version


class Store:
    """`ObjectStoreSync` without Ray's store."""

    def __init__(self, sync: NcclSync) -> None:
        self.sync = sync

    async def take(self, ranks: Any, version: WeightVersion) -> None:
        try:
            await asyncio.wait_for(ranks[0].export_weights.remote(version.number), TIMEOUT_S)
        except TimeoutError as error:
            raise WeightSyncError(f"weight version {version.number} was not exported") from error

    async def deliver(self, pool: ActorPool) -> int:
        version = self.sync.version

        async def load(member: Any) -> None:
            held = await pool.load(member, lambda handle: handle.update_weights.remote(version, ()), TIMEOUT_S)
            if held is not None:
                member.health.holds(held, version)

        await asyncio.gather(*map(load, pool.members))
        return version.number

    async def catch_up(self, worker: Any) -> WeightVersion:
        return WeightVersion(*await worker.update_weights.remote(self.sync.version, ()))


class Scene:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.actors: list[LocalActor] = []
        self.sync = NcclSync(WeightSyncConfig(backend="nccl", timeout_s=TIMEOUT_S), 1, self.notes.append)
        self.sync._store = Store(self.sync)  # type: ignore[assignment]
        hooks = PoolHooks(self._spawn, self._start, self._hear, self.notes.append, self.sync, LocalActor.kill)
        self.pool = ActorPool("rollout", 3, 1, hooks, Patience(heartbeat_s=0.02, heartbeat_timeout_s=0.1))

    def _spawn(self, worker_id: str) -> Any:
        self.actors.append(LocalActor(Worker()))
        return self.actors[-1]

    async def _start(self, handle: Any) -> None:
        """At once."""

    async def _hear(self, worker_id: str, state: str) -> None:
        """Nobody listens."""

    async def publish(self, rank: Rank) -> None:
        """Version 1, while one of its workers dies."""
        publishing = asyncio.create_task(self.sync.publish((LocalActor(rank),), 1, self.pool))  # type: ignore[arg-type]
        await until(lambda: rank.turn.locked())
        self.actors[2].kill()
        await asyncio.wait_for(publishing, WAIT_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    await asyncio.wait_for(scene.pool.start(), WAIT_S)
    yield scene
    await scene.pool.close()


async def test_the_version_goes_through_the_object_store_and_every_worker_holds_it(scene: Scene) -> None:
    await scene.publish(Rank())
    assert any("weight version 1 goes through the object store; NCCL failed" in note for note in scene.notes)
    assert await asyncio.wait_for(scene.sync.deliver(scene.pool), WAIT_S) == 1
    await until(lambda: [m.health.held_version for m in scene.pool.members] == [WeightVersion(0, 1)] * 3)


async def test_a_learner_that_stays_in_the_broadcast_is_lost_and_may_be_started_again(scene: Scene) -> None:
    with pytest.raises(LearnerLostError, match="does not come back from a broadcast that failed: weight version 1"):
        await scene.publish(Rank(gives_up=False))
