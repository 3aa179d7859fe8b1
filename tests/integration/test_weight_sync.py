"""Weights on their way through a real Ray: what the store holds is what they were when they were exported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray
import torch

from cluster.actors import RolloutActor
from cluster.learning import ObjectStoreSync
from cluster.pools import ActorPool
from cluster.pools.member import Member
from configs.schema import RunConfig, WeightSyncConfig
from rollout.records import BucketStream, WeightBucket
from rollout.weights.buckets import each_bucket, pack_bucket, view_bucket
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
