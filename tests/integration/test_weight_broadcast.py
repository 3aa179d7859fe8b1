"""Weights by broadcast between real Ray actors, by IPC and over gloo: one that is killed inside it costs its own
membership."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import pytest
import ray
import torch

from cluster.actors import RolloutActor
from cluster.actors.spawning import node_id
from cluster.learning import BroadcastSync, broadcast_sync
from cluster.pools import ActorPool, Patience, PoolHooks
from configs.local.ports import free_port
from configs.schema import RunConfig, WeightSyncConfig
from rollout.records import BucketStream, GroupPlace, TensorInfo, WeightBucket
from rollout.weights.buckets import each_bucket, pack_bucket, unpack_bucket
from rollout.weights.groups import WeightGroup

pytestmark = pytest.mark.usefixtures("ray_cluster")

LAYOUT: list[TensorInfo] = [(f"layer{number}", "bfloat16", (600, 1000)) for number in range(4)]
CPU = torch.device("cpu")
CONFIG = RunConfig.model_validate(
    {"model": {"path": "janus", "dtype": "float32"}, "data": {"train": "x.txt"}, "rewards": [{"name": "shapes"}]}
)


class Learner:
    """Rank 0; the weights of version n are n."""

    _group: WeightGroup | None = None

    def free_port(self) -> tuple[str, int]:
        return "127.0.0.1", free_port("127.0.0.1")

    def node(self) -> str:
        return node_id()

    def weight_layout(self) -> list[TensorInfo]:
        return LAYOUT

    def join_collective(self, place: GroupPlace) -> None:
        self._group = WeightGroup(place, CPU)
        self._group.meet()

    def send_collective(self, version: int, bucket_bytes: int) -> None:
        assert self._group is not None
        self._group.send(self._tensors(version), LAYOUT, bucket_bytes)

    def abort_collective(self) -> None:
        if self._group is not None:
            self._group.abort()

    def export_weights(self, version: int) -> Iterator[WeightBucket | int]:
        """For a worker that joins."""
        yield pack_bucket(list(self._tensors(version)))
        yield 1

    def _tensors(self, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        for name, _, shape in LAYOUT:
            yield name, torch.full(tuple(shape), float(version), dtype=torch.bfloat16)


class Engine:
    """Holds the sum of what it was given; can be told to do something to its process inside the next broadcast."""

    is_usable = True
    figures = None

    def __init__(self) -> None:
        self.total = 0.0
        self.signal: int | None = None
        self._group: WeightGroup | None = None

    @property
    def collective(self) -> Engine:
        return self

    async def join_collective(self, place: GroupPlace) -> None:
        self._group = WeightGroup(place, CPU)
        await asyncio.to_thread(self._group.meet)

    async def receive_collective(self, version: int, layout: Sequence[TensorInfo], bucket_bytes: int) -> None:
        self.total = await asyncio.to_thread(self._receive, layout, bucket_bytes)

    async def abort_collective(self) -> None:
        if self._group is not None:
            self._group.abort()

    async def update_weights(self, version: int, buckets: BucketStream) -> None:
        self.total = 0.0
        async for bucket in each_bucket(buckets):
            self.total += sum(float(tensor.float().sum()) for _, tensor in unpack_bucket(bucket))

    async def check_alive(self) -> None:
        """It is."""

    def _receive(self, layout: Sequence[TensorInfo], bucket_bytes: int) -> float:
        assert self._group is not None
        total = 0.0
        for bucket in self._group.receive(layout, bucket_bytes):
            total += sum(float(tensor.float().sum()) for _, tensor in bucket)
            if self.signal is not None:
                os.kill(os.getpid(), self.signal)
        return total


class Rollout(RolloutActor):
    """With such an engine."""

    async def start(self) -> None:
        self._engine = Engine()
        self._worker = cast(Any, self._engine)

    async def total(self) -> float:
        return self._engine.total

    async def do_next(self, number: int) -> None:
        self._engine.signal = number


@pytest.mark.parametrize(
    ("what", "lost", "transport"),
    [
        (signal.SIGKILL, 1, "ipc"),
        pytest.param(signal.SIGKILL, 1, "nccl", marks=pytest.mark.proof),
        pytest.param(signal.SIGSTOP, 0, "ipc", marks=pytest.mark.proof),
        pytest.param(signal.SIGSTOP, 0, "nccl", marks=pytest.mark.proof),
    ],
)
async def test_whoever_holds_up_a_broadcast_costs_its_own_membership_and_nothing_else(
    what: int, lost: int, transport: Literal["nccl", "ipc"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast_sync, "_MOST_PATIENCE_S", 5.0)
    notes: list[str] = []
    sync = BroadcastSync(WeightSyncConfig(timeout_s=30, bucket_mb=1), transport, 1, notes.append)
    learner = ray.remote(concurrency_groups={"pulse": 1})(Learner).options(num_cpus=0.1).remote()

    async def on_change(worker_id: str, state: str) -> None:
        pass

    hooks = PoolHooks(
        spawn=lambda worker_id: ray.remote(Rollout).options(num_cpus=0.1).remote(CONFIG, "model", worker_id),
        start=lambda handle: handle.start.remote(),
        on_change=on_change,
        note=notes.append,
        weights=sync,
    )
    pool = ActorPool("rollout", 2, 1, hooks, Patience(heartbeat_s=1.0, heartbeat_timeout_s=120))
    try:
        await asyncio.wait_for(pool.start(), 60)
        await asyncio.wait_for(sync.publish([learner], 1, pool), 60)
        well, hurt = pool.members
        assert await well.handle.total.remote() == await hurt.handle.total.remote() == 4 * 600_000
        await hurt.handle.do_next.remote(what)
        await asyncio.wait_for(sync.publish([learner], 2, pool), 90)
        assert await sync.deliver(pool) == 2
        assert await well.handle.total.remote() == 2 * 4 * 600_000
        assert [member.health.held_version for member in pool.members if member is well] == [sync.version]
        assert hurt not in pool.members
        assert pool.num_lost == lost
        assert not any("object store" in note for note in notes), notes
    finally:
        if what == signal.SIGSTOP:
            ray.kill(hurt.handle)
        await pool.close()
