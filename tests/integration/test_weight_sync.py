"""Weights on their way through a real Ray: what the store holds is what they were when they were exported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ObjectLostError

from cluster.actors import RolloutActor
from cluster.learning import ObjectStoreSync
from cluster.pools import ActorPool, PoolHooks
from cluster.pools.member import Member
from configs.schema import RunConfig, WeightSyncConfig
from rollout.records import BucketStream, WeightBucket, WeightVersion
from rollout.weights.buckets import each_bucket, pack_bucket, view_bucket
from rollout.weights.delta import Changes, DeltaBucket, DeltaEncoder, DeltaSummary
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Learner:
    """Gives its weights without copying them, as `LearnerActor.export_weights` does, and goes on at once."""

    def export(self) -> Iterator[WeightBucket]:
        weight = torch.empty(100_000)  # too large for Ray to carry beside its store
        for version in range(4):
            weight.fill_(version)
            yield view_bucket([("weight", weight), ("small", weight[:3])])
            weight.fill_(-1)


async def test_a_bucket_that_shares_the_learners_memory_is_in_the_store_before_the_learner_goes_on() -> None:
    learner = ray.remote(Learner).options(num_cpus=0.1).remote()
    references = [each async for each in learner.export.options(num_returns="streaming").remote()]
    for version, bucket in enumerate([await each for each in references]):
        values = [array.view(np.float32) for array in bucket.arrays]
        assert [(array.min(), array.max()) for array in values] == [(version, version)] * 2
        assert not any(array.flags.writeable for array in bucket.arrays)


class PatientLearner:
    """Exports its second bucket once somebody has loaded the first one."""

    def __init__(self, loaded: Path) -> None:
        self._loaded = loaded

    def export_weights(self, version: int) -> Iterator[WeightBucket | int]:
        yield pack_bucket([("first", torch.ones(100_000))])
        yield pack_bucket([("second", torch.ones(100_000))])  # the first one is told of when there is a second
        wait_until(self._loaded.exists, 20, "the first bucket is loaded")
        yield pack_bucket([("third", torch.ones(100_000))])
        yield 3


class Engine:
    """Says so when it has loaded a bucket."""

    is_usable = True

    def __init__(self, loaded: Path) -> None:
        self._loaded = loaded
        self.names: list[str] = []

    async def update_weights(self, version: int, buckets: BucketStream) -> None:
        async for bucket in each_bucket(buckets):
            self.names += bucket.names
            self._loaded.touch()


class Rollout(RolloutActor):
    """A rollout worker with such an engine."""

    def __init__(self, config: RunConfig, loaded: Path) -> None:
        super().__init__(config, "model", "rollout-0")
        self._engine = Engine(loaded)
        self._worker = cast(Any, self._engine)

    async def names(self) -> list[str]:
        return self._engine.names


class Pool:
    """The one worker that an `ActorPool` would have."""

    def __init__(self, handle: Any) -> None:
        self.members = (Member("rollout-0", handle),)

    async def load(self, member: Member, invoke: Any, timeout_s: float) -> Any:
        return await asyncio.wait_for(invoke(member.handle), timeout_s)


async def test_a_worker_loads_the_first_buckets_while_the_learner_exports_the_last(tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    config = RunConfig.model_validate(
        {
            "model": {"path": "janus", "dtype": "float32"},
            "data": {"train": "prompts.txt"},
            "rewards": [{"name": "shapes"}],
        }
    )
    learner = ray.remote(PatientLearner).options(num_cpus=0.1).remote(loaded)
    rollout = ray.remote(Rollout).options(num_cpus=0.1).remote(config, loaded)
    sync, pool = ObjectStoreSync(WeightSyncConfig(timeout_s=60)), cast(ActorPool, Pool(rollout))
    await sync.publish([learner], 1, pool)  # with nobody that loads meanwhile, the learner gives up here
    assert await sync.deliver(pool) == 1
    assert await rollout.names.remote() == ["first", "second", "third"]
    assert pool.members[0].health.held_version == sync.version


class SmallSteps:
    """A float32 master that AdamW moves at a learning rate of 1e-6, exported as bfloat16."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._master = (0.02 * torch.randn(400, 500)).bfloat16().float().requires_grad_(True)
        self._adamw = torch.optim.AdamW([self._master], lr=1e-6, weight_decay=0.0)
        self._encoder = DeltaEncoder()
        self.damages = False

    def export_changes(
        self, version: WeightVersion, base: WeightVersion | None
    ) -> Iterator[WeightBucket | DeltaBucket | DeltaSummary]:
        for bucket in self._encoder.encode(version, base, self._buckets()):
            yield _damaged(bucket) if self.damages and isinstance(bucket, DeltaBucket) else bucket
        yield self._encoder.summary

    def step(self) -> None:
        self._master.grad = torch.randn_like(self._master)
        self._adamw.step()

    def weights(self) -> list[bytes]:
        return [array.tobytes() for bucket in self._buckets() for array in bucket.arrays]

    def damage(self, damages: bool) -> None:
        self.damages = damages

    def _buckets(self) -> Iterator[WeightBucket]:
        exported = self._master.detach().bfloat16()
        for rows in (exported[:100], exported[100:]):
            yield view_bucket([(f"rows-{len(rows)}", rows)])


def _damaged(bucket: DeltaBucket) -> DeltaBucket:
    """With one value that is another one."""
    (changes,) = bucket.contents
    assert isinstance(changes, Changes)
    values = changes.values.copy()
    values[0] ^= 1
    return replace(bucket, contents=(replace(changes, values=values),))


class Follower(RolloutActor):
    """A rollout worker whose engine keeps what it was given."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config, "model", "rollout-0")
        self._worker = cast(Any, self)
        self.is_usable = True
        self._loads: list[list[bytes]] = []

    async def update_weights(self, version: Any, *sent: Any) -> Any:
        if isinstance(version, WeightVersion):
            return await super().update_weights(version, *sent)
        self._loads.append([each.tobytes() async for bucket in each_bucket(sent[0]) for each in bucket.arrays])
        return None

    async def check_alive(self) -> None:
        """It is."""

    async def weights(self) -> list[bytes]:
        return self._loads[-1]

    async def forget_a_value(self) -> None:
        """What it keeps is not what it was sent."""
        assert self._replica is not None
        for kept in self._replica._kept.values():
            kept[:] ^= 1

    async def num_unfit_deltas(self) -> int:
        return self._num_unfit_deltas


def _delta_config() -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"path": "janus", "dtype": "float32"},
            "data": {"train": "prompts.txt"},
            "rewards": [{"name": "shapes"}],
            "weight_sync": {"delta": True, "timeout_s": 60},
        }
    )


async def test_workers_that_took_changes_have_the_bits_of_one_that_took_all_weights() -> None:
    """One takes every version; one misses two; one keeps wrong values; and one joins at the end."""
    config = _delta_config()
    learner = ray.remote(SmallSteps).options(num_cpus=0.1).remote()
    steady, lazy, wrong, late = (ray.remote(Follower).options(num_cpus=0.1).remote(config) for _ in range(4))
    sync = ObjectStoreSync(config.weight_sync)
    pools = {name: cast(ActorPool, Pool(each)) for name, each in (("steady", steady), ("lazy", lazy), ("wrong", wrong))}
    sizes = []
    for number in range(1, 5):
        await learner.step.remote()
        await sync.publish([learner], number, pools["steady"])
        sizes.append(sync.figures["sync/sent_mb"])
        if number == 3:
            await wrong.forget_a_value.remote()
        for name, pool in pools.items():
            if name != "lazy" or number in (1, 4):
                assert await sync.deliver(pool) == number
        assert await steady.weights.remote() == await learner.weights.remote()
    assert await sync.catch_up(late) == sync.version
    expected = await learner.weights.remote()
    assert [await each.weights.remote() for each in (lazy, wrong, late)] == [expected] * 3
    unfit = [await each.num_unfit_deltas.remote() for each in (steady, lazy, wrong, late)]
    assert unfit == [0, 0, 1, 0]
    assert 0 < sync.figures["sync/changed_share"] < 0.03
    assert sizes[0] == pytest.approx(0.4)
    assert max(sizes[1:]) < 0.06 * sizes[0]


async def test_versions_that_are_lost_or_damaged_in_the_store_come_again_whole_and_no_worker_is_lost() -> None:
    config, notes = _delta_config(), list[str]()
    learner = ray.remote(SmallSteps).options(num_cpus=0.1).remote()
    sync = ObjectStoreSync(config.weight_sync, notes.append)

    async def nothing(*_: Any) -> None:
        """The worker has started, or is in another state."""

    spawn = ray.remote(Follower).options(num_cpus=0.1).remote
    pool = ActorPool("rollout", 2, 1, PoolHooks(lambda worker_id: spawn(config), nothing, nothing, notes.append, sync))
    try:
        await asyncio.wait_for(pool.start(), 60)
        handles = [member.handle for member in pool.members]
        for number, is_whole in ((1, True), (2, True), (3, False)):
            await learner.step.remote()
            await learner.damage.remote(number == 2)
            await sync.publish([learner], number, cast(ActorPool, Nobody()))
            if number == 1:
                sync._sent[0].buckets[1] = lost_bucket()
            assert await asyncio.wait_for(sync.deliver(pool), 60) == number
            expected = await learner.weights.remote()
            assert [await handle.weights.remote() for handle in handles] == [expected] * 2
            assert ("sync/changed_share" not in sync.figures) == is_whole
        assert ([member.handle for member in pool.members], pool.num_lost) == (handles, 0)
    finally:
        await pool.close()
    lost, damaged = notes
    assert lost.startswith("weight version 1 is damaged or lost: ")
    assert damaged.startswith("weight version 2 is damaged or lost: the changes of weight 'rows-100' were made of")


class Owner:
    """Of a bucket that goes with it."""

    def put(self) -> list[Any]:
        return [ray.put(pack_bucket([("w", torch.ones(100_000))]))]


def lost_bucket() -> Any:
    owner = ray.remote(Owner).options(num_cpus=0.1).remote()
    (reference,) = ray.get(owner.put.remote())
    ray.kill(owner)

    def is_lost() -> bool:
        try:
            ray.get(reference)
        except ObjectLostError:
            return True
        return False

    wait_until(is_lost, 30, "Ray has not noticed that the owner is gone")
    return reference


class Nobody:
    """A pool of which no worker listens while a version is exported."""

    members = ()
