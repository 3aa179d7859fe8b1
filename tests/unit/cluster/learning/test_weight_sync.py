"""Weights that come damaged, or are lost on their way: the learner gives them again, whole, and no worker is lost to
it. The store only pretends; Ray's own is in `tests/integration/test_weight_sync.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from ray.exceptions import ActorDiedError, ObjectLostError

from cluster.actors import RolloutActor
from cluster.benchmarks.local_actors import LocalActor
from cluster.learning import ObjectStoreSync
from cluster.pools import ActorPool, Patience, PoolHooks
from cluster.pools.heartbeats import PingPace
from configs.errors import LearnerError
from configs.schema import RunConfig
from rollout.records import BucketStream, WeightBucket, WeightVersion
from rollout.weights.buckets import each_bucket, pack_bucket
from rollout.weights.delta import Changes, DeltaBucket, DeltaEncoder

WAIT_S = 10.0
PATIENCE = Patience(heartbeat_s=0.01, heartbeat_timeout_s=WAIT_S, retry_start_s=0.01, pace=PingPace(1000.0))
CONFIG = RunConfig.model_validate(
    {
        "model": {"path": "janus", "dtype": "float32"},
        "data": {"train": "prompts.txt"},
        "rewards": [{"name": "shapes"}],
        "weight_sync": {"delta": True, "timeout_s": WAIT_S},
    }
)
V1, V2, V3 = (WeightVersion(0, number) for number in (1, 2, 3))


class Reference:
    """To what lies in the store, and may become something else there."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        if isinstance(self.content, Exception):
            raise self.content
        return self.content

    def damage(self) -> None:
        assert isinstance(self.content, DeltaBucket)
        (changes,) = self.content.contents
        assert isinstance(changes, Changes)
        self.content = replace(self.content, contents=(replace(changes, values=changes.values ^ 1),))

    def lose(self) -> None:
        self.content = ObjectLostError("ab", None, "")


class Rank:
    """Rank 0 of a learner, of which each step changes one value of each of two tensors."""

    def __init__(self, version: int = 0) -> None:
        self.version = 0
        self.weights = {"first": torch.zeros(1000), "second": torch.zeros(1000)}
        self.asked_for: list[tuple[WeightVersion, WeightVersion | None]] = []
        """Each version that was to be exported, and the one before that it was to be changes of."""
        self.sent: list[Reference] = []
        """The buckets that were exported last."""
        self.is_dead = False
        self._encoder = DeltaEncoder()
        while self.version < version:
            self.step()

    def step(self) -> None:
        self.version += 1
        for tensor in self.weights.values():
            tensor[self.version] = self.version

    @property
    def bits(self) -> dict[str, bytes]:
        return {name: tensor.numpy().tobytes() for name, tensor in self.weights.items()}

    @property
    def export_changes(self) -> Rank:
        return self

    def options(self, num_returns: str) -> Rank:
        assert num_returns == "streaming"
        return self

    async def remote(self, version: WeightVersion, base: WeightVersion | None) -> AsyncIterator[Reference]:
        self.asked_for.append((version, base))
        if self.is_dead:
            yield Reference(ActorDiedError())
        elif version.number != self.version:
            yield Reference(LearnerError(f"the learner is at {self.version}"))
        else:
            buckets = [pack_bucket([each]) for each in self.weights.items()]
            self.sent = [Reference(bucket) for bucket in self._encoder.encode(version, base, buckets)]
            for each in self.sent:
                yield each
            yield Reference(self._encoder.summary)


class Worker(RolloutActor):
    """A rollout worker whose engine keeps what it was given."""

    is_usable = True

    def __init__(self, worker_id: str) -> None:
        super().__init__(CONFIG, "model", worker_id)
        self._worker = cast(Any, self)
        self.bits: dict[str, bytes] = {}

    async def update_weights(self, version: Any, *sent: Any) -> Any:
        if isinstance(version, WeightVersion):
            return await super().update_weights(version, *sent)
        loaded: list[WeightBucket] = [bucket async for bucket in each_bucket(cast(BucketStream, sent[0]))]
        self.bits = {bucket.names[0]: bucket.arrays[0].tobytes() for bucket in loaded}
        return None

    async def ping(self) -> str:
        return "node"

    async def work(self) -> str:
        return self._worker_id


class Scene:
    """A learner and a pool that follows it."""

    def __init__(self, size: int = 2) -> None:
        self.notes: list[str] = []
        self.workers: dict[str, Worker] = {}
        self.rank = Rank()
        self.sync = ObjectStoreSync(CONFIG.weight_sync, self.notes.append)
        hooks = PoolHooks(self._spawn, self._start, self._hear, self.notes.append, self.sync, LocalActor.kill)
        self.pool = ActorPool("rollout", size, 1, hooks, PATIENCE)

    def _spawn(self, worker_id: str) -> Any:
        self.workers[worker_id] = Worker(worker_id)
        return LocalActor(self.workers[worker_id])

    async def _start(self, handle: Any) -> None:
        """At once."""

    async def _hear(self, worker_id: str, state: str) -> None:
        """Nobody listens."""

    async def publish(self) -> None:
        """The version after a step."""
        self.rank.step()
        await self.sync.publish((cast(Any, self.rank),), self.rank.version, self.pool)

    async def deliver(self) -> int:
        return await asyncio.wait_for(self.sync.deliver(self.pool), WAIT_S)

    async def call(self) -> str:
        """An answer of some worker; raises what ended the pool."""
        answer = await asyncio.wait_for(self.pool.call(lambda handle: handle.work.remote(), WAIT_S), WAIT_S)
        return cast(str, answer)

    def follow(self) -> dict[str, bool]:
        """Of the READY workers, whether each has the learner's weights to the bit."""
        return {each.worker_id: self.workers[each.worker_id].bits == self.rank.bits for each in self.pool.members}


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """Two workers that have the first version."""
    scene = Scene()
    await asyncio.wait_for(scene.pool.start(), WAIT_S)
    await scene.publish()
    assert await scene.deliver() == 1
    yield scene
    await scene.pool.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


BOTH = {"rollout-0": True, "rollout-1": True}


@pytest.mark.parametrize(
    ("happens", "said"),
    [(Reference.damage, "the changes of weight 'second' were made of other values"), (Reference.lose, "ab")],
)
async def test_what_is_of_no_use_to_any_worker_is_exported_once_more_whole_and_all_go_on(
    scene: Scene, happens: Callable[[Reference], None], said: str
) -> None:
    await scene.publish()
    happens(scene.rank.sent[1])
    assert await scene.deliver() == 2
    assert await scene.call() in BOTH
    assert (scene.follow(), scene.pool.num_lost) == (BOTH, 0)
    assert scene.rank.asked_for == [(V1, None), (V2, V1), (V2, None)]
    (note,) = scene.notes
    assert note.startswith("weight version 2 is damaged or lost: ")
    assert said in note
    assert note.endswith("; the learner sends its weights again, whole")
    await scene.publish()
    assert await scene.deliver() == 3
    assert scene.rank.asked_for[-1] == (V3, V2)
    assert scene.follow() == BOTH


async def test_a_worker_that_joins_and_finds_a_damaged_version_gets_it_whole(scene: Scene) -> None:
    await scene.publish()
    assert await scene.deliver() == 2
    scene.rank.sent[0].damage()
    await scene.publish()
    assert await scene.deliver() == 3
    await scene.pool.resize(3)
    await until(lambda: scene.pool.num_ready == 3)
    assert scene.follow() == {**BOTH, "rollout-2": True}
    assert scene.rank.asked_for[2:] == [(V3, V2), (V3, None)]


async def test_changes_that_were_published_on_damaged_ones_meanwhile_are_mended_with_them(scene: Scene) -> None:
    """The worker has found damage, and before it says so there are newer changes in the store."""
    await scene.publish()
    scene.rank.sent[0].damage()
    late = LocalActor(Worker("late"))
    async with scene.sync._taking:
        catching_up = asyncio.create_task(scene.sync.catch_up(cast(Any, late)))
        await until(lambda: late._worker._num_unfit_deltas == 1)
        scene.rank.step()
        await scene.sync._take((cast(Any, scene.rank),), V3, ())
    assert await asyncio.wait_for(catching_up, WAIT_S) == V3
    assert late._worker.bits == scene.rank.bits


async def test_workers_whose_learner_has_gone_on_wait_for_the_next_version_which_is_whole(scene: Scene) -> None:
    await scene.publish()
    scene.rank.sent[0].damage()
    scene.rank.step()  # before it could be asked
    assert await scene.deliver() == 2  # which lets the loop publish the next one
    assert (scene.pool.num_ready, scene.pool.num_joining) == (0, 2)
    assert scene.notes[0].startswith("weight version 2 is damaged or lost: the changes of weight 'first'")
    told = {note.partition(": ")[0] for note in scene.notes[1:]}
    assert told == {"rollout-0 has to wait", "rollout-1 has to wait"}
    calling = asyncio.create_task(scene.call())
    await scene.sync.publish((cast(Any, scene.rank),), 3, scene.pool)
    assert scene.rank.asked_for[-1] == (V3, None)
    assert await calling in BOTH
    await until(lambda: scene.pool.num_ready == 2)
    assert (scene.follow(), scene.pool.num_lost) == (BOTH, 0)


async def test_workers_whose_buckets_are_lost_with_the_learner_wait_for_the_next_learner(scene: Scene) -> None:
    await scene.publish()
    for each in scene.rank.sent:
        each.lose()
    scene.rank.is_dead = True
    assert await scene.deliver() == 2
    assert (scene.pool.num_ready, scene.pool.num_joining) == (0, 2)
    calling = asyncio.create_task(scene.call())
    scene.rank = Rank(1)
    await scene.sync.restore((cast(Any, scene.rank),), 1)
    assert await calling in BOTH
    await until(lambda: scene.pool.num_ready == 2)
    assert (scene.follow(), scene.pool.num_lost) == (BOTH, 0)
