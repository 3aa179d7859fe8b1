"""A worker dies or stalls inside a broadcast, and who pays for it. The broadcast only pretends: a real one is in
`tests/integration/test_weight_broadcast.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Literal

import pytest

from cluster.benchmarks.local_actors import LocalActor
from cluster.learning import BroadcastSync, broadcast_sync
from cluster.learning.learner_group import LearnerLostError
from cluster.pools import ActorPool, Patience, PoolHooks
from configs.errors import WeightSyncError
from configs.schema import WeightSyncConfig
from rollout.records import GroupPlace, WeightVersion

WAIT_S = 10.0
TIMEOUT_S = 1.0


class Broadcast:
    """Ends when all of its members take part, and when it is broken off."""

    def __init__(self) -> None:
        self.size = 0
        self.inside: set[str] = set()
        self.is_over = asyncio.Event()
        self.groups: list[int] = []

    def form(self, place: GroupPlace) -> None:
        if place.rank == 0:
            self.size, self.inside, self.is_over = place.world_size, set(), asyncio.Event()
            self.groups.append(place.world_size)

    async def take_part(self, name: str) -> None:
        is_over = self.is_over
        self.inside.add(name)
        if len(self.inside) == self.size:
            is_over.set()
            return
        await is_over.wait()
        if len(self.inside) < self.size:
            raise WeightSyncError("the weight broadcast was broken off")


class Rank:
    """One call at a time, but for `abort_collective`, as the learner's rank 0."""

    def __init__(self, broadcast: Broadcast, leaves: bool = True) -> None:
        self.broadcast = broadcast
        self.leaves = leaves
        self.turn = asyncio.Lock()

    async def node(self) -> str:
        return "node"

    async def free_port(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    async def weight_layout(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return [("w", "float32", (4,))]

    async def join_collective(self, place: GroupPlace) -> None:
        self.broadcast.form(place)

    async def send_collective(self, version: int, bucket_bytes: int) -> None:
        async with self.turn:
            await self.broadcast.take_part("learner")

    async def abort_collective(self) -> None:
        if self.leaves:
            self.broadcast.is_over.set()

    async def export_weights(self, version: int) -> int:
        async with self.turn:
            return version


class Worker:
    """Answers nothing while it is frozen."""

    def __init__(self, worker_id: str, broadcast: Broadcast) -> None:
        self.worker_id = worker_id
        self.broadcast = broadcast
        self.freezes = False
        self.node = "node"
        self.awake = asyncio.Event()
        self.awake.set()

    async def ping(self) -> str:
        await self.awake.wait()
        return self.node

    async def join_collective(self, place: GroupPlace) -> str:
        return ""

    async def receive_collective(self, version: WeightVersion, layout: Any, bucket_bytes: int) -> str:
        if self.freezes:
            self.awake.clear()
            await asyncio.Event().wait()
        try:
            await self.broadcast.take_part(self.worker_id)
        except WeightSyncError as error:
            return str(error)
        return ""

    async def abort_collective(self) -> str:
        await self.awake.wait()
        return ""

    async def update_weights(self, version: WeightVersion, buckets: Any) -> WeightVersion:
        await self.awake.wait()
        return version


class Store:
    """`ObjectStoreSync` without Ray's store."""

    def __init__(self, sync: BroadcastSync) -> None:
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
    def __init__(self, transport: Literal["nccl", "ipc"] = "nccl", nodes: Mapping[str, str] | None = None) -> None:
        """nodes: of workers that are not on the learner's."""
        self.nodes = nodes or {}
        self.notes: list[str] = []
        self.broadcast = Broadcast()
        self.workers: list[Worker] = []
        self.actors: list[LocalActor] = []
        self.sync = BroadcastSync(WeightSyncConfig(timeout_s=TIMEOUT_S), transport, 1, self.notes.append)
        self.sync._store = Store(self.sync)  # type: ignore[assignment]
        hooks = PoolHooks(self._spawn, self._start, self._hear, self.notes.append, self.sync, LocalActor.kill)
        self.pool = ActorPool("rollout", 3, 1, hooks, Patience(heartbeat_s=0.5, heartbeat_timeout_s=60))

    def _spawn(self, worker_id: str) -> Any:
        self.workers.append(Worker(worker_id, self.broadcast))
        self.workers[-1].node = self.nodes.get(worker_id, "node")
        self.actors.append(LocalActor(self.workers[-1]))
        return self.actors[-1]

    async def _start(self, handle: Any) -> None:
        """At once."""

    async def _hear(self, worker_id: str, state: str) -> None:
        """Nobody listens."""

    async def publish(self, rank: Rank, number: int = 1) -> None:
        # Ray's handles, which LocalActor's stand for.
        await asyncio.wait_for(self.sync.publish((LocalActor(rank),), number, self.pool), WAIT_S)  # type: ignore[arg-type]

    @property
    def held(self) -> dict[str, WeightVersion | None]:
        return {member.worker_id: member.health.held_version for member in self.pool.members}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(broadcast_sync, "_ANSWER_S", 0.2)
    monkeypatch.setattr(broadcast_sync, "_LEARNER_ANSWER_S", 0.2)
    scene = Scene()
    await asyncio.wait_for(scene.pool.start(), WAIT_S)
    yield scene
    await scene.pool.close()


V1 = WeightVersion(0, 1)


async def test_a_worker_that_dies_is_replaced_and_the_others_get_the_version_by_a_group_without_it(
    scene: Scene,
) -> None:
    publishing = asyncio.create_task(scene.publish(Rank(scene.broadcast)))
    scene.workers[2].freezes = True
    await until(lambda: scene.broadcast.inside == {"learner", "rollout-0", "rollout-1"})
    scene.actors[2].kill()
    await publishing
    assert scene.broadcast.groups == [4, 3]
    assert not any("object store" in note for note in scene.notes)
    assert await asyncio.wait_for(scene.sync.deliver(scene.pool), WAIT_S) == 1
    assert {name: held for name, held in scene.held.items() if name != "rollout-3"} == dict.fromkeys(
        ("rollout-0", "rollout-1"), V1
    )
    await until(lambda: scene.held.get("rollout-3") == V1)  # in its place; it has caught up by the store
    assert scene.pool.num_lost == 1


async def test_a_worker_that_stalls_is_left_out_until_it_has_caught_up_and_nobody_is_lost(scene: Scene) -> None:
    rank = Rank(scene.broadcast)
    await scene.publish(rank)
    scene.workers[1].freezes = True
    await scene.publish(rank, 2)
    assert scene.broadcast.groups == [4, 3]
    assert scene.held == dict.fromkeys(("rollout-0", "rollout-2"), WeightVersion(0, 2))
    assert any(note.startswith("rollout-1 did not answer for 0.2 s after a broadcast failed") for note in scene.notes)
    scene.workers[1].freezes = False
    scene.workers[1].awake.set()
    await until(lambda: len(scene.held) == 3)
    assert set(scene.held.values()) == {WeightVersion(0, 2)}
    assert scene.pool.num_lost == 0
    await scene.publish(rank, 3)
    assert scene.broadcast.groups == [4, 3, 4], "it is a member again"


async def test_what_fails_twice_goes_through_the_object_store(scene: Scene) -> None:
    scene.workers[0].receive_collective = refuse  # type: ignore[method-assign]
    await scene.publish(Rank(scene.broadcast))
    assert scene.broadcast.groups == [4, 4]
    note = "weight version 1 goes through the object store; the broadcast failed: a cable is loose"
    assert note in scene.notes
    assert await asyncio.wait_for(scene.sync.deliver(scene.pool), WAIT_S) == 1
    await until(lambda: scene.held == dict.fromkeys(("rollout-0", "rollout-1", "rollout-2"), V1))
    assert scene.pool.num_lost == 0


async def refuse(*arguments: Any) -> str:
    return "a cable is loose"


async def test_a_learner_that_stays_in_the_broadcast_is_lost_and_may_be_started_again(scene: Scene) -> None:
    scene.workers[0].freezes = True
    with pytest.raises(LearnerLostError, match="does not come back from a broadcast that failed"):
        await scene.publish(Rank(scene.broadcast, leaves=False))


async def test_ipc_joins_the_workers_of_the_learners_node_and_the_others_load_from_the_store() -> None:
    scene = Scene("ipc", {"rollout-1": "elsewhere"})
    await asyncio.wait_for(scene.pool.start(), WAIT_S)
    try:
        for number in (1, 2):
            await scene.publish(Rank(scene.broadcast), number)
            assert scene.held["rollout-0"] == scene.held["rollout-2"] == WeightVersion(0, number)
            assert scene.held["rollout-1"] != WeightVersion(0, number)
            assert await asyncio.wait_for(scene.sync.deliver(scene.pool), WAIT_S) == number
            assert scene.held == dict.fromkeys(("rollout-0", "rollout-1", "rollout-2"), WeightVersion(0, number))
        assert scene.broadcast.groups == [3], "two workers and the learner, once"
        assert len([note for note in scene.notes if note.startswith("rollout-1 load new weights from the obj")]) == 1
    finally:
        await scene.pool.close()


async def test_ipc_forms_no_group_where_no_worker_is_on_the_learners_node() -> None:
    scene = Scene("ipc", dict.fromkeys(("rollout-0", "rollout-1", "rollout-2"), "elsewhere"))
    await asyncio.wait_for(scene.pool.start(), WAIT_S)
    try:
        await scene.publish(Rank(scene.broadcast))
        assert await asyncio.wait_for(scene.sync.deliver(scene.pool), WAIT_S) == 1
        assert (scene.broadcast.groups, set(scene.held.values())) == ([], {V1})
    finally:
        await scene.pool.close()
