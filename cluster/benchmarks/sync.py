"""Weight sync: a real learner rank, and models of any size, to a real vLLM rollout worker.

learner actor ── publish ──► object store ── deliver ──► rollout actor ─► vLLM, weights in place
or `WeightSource` ─────────► IPC ──────────────────────►   one that stages, one that does not, in turns
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, cast

from ray.actor import ActorHandle

from cluster.actors import RolloutActor, spawn
from cluster.benchmarks.models import HUNDRED_MB, make_model, shapes_config, wide_model
from cluster.benchmarks.report import Scope, Table, ratio, spread
from cluster.benchmarks.weight_source import CONCURRENCY_GROUPS, WeightSource
from cluster.learning import BroadcastSync, LearnerGroup, ObjectStoreSync, WeightSync
from cluster.pools import ActorPool, PoolHooks
from cluster.pools.member import Member
from cluster.session import plan_placement, ray_session
from configs.schema import RunConfig, TinyJanusConfig
from rollout.weights.manifest import tensor_bytes

IN_A_PAUSE: Final = "object store, in a pause"
STAGED: Final = "object store, staged"
BY_IPC: Final = "IPC, staged"
CHANGES: Final = "object store, staged, changes alone"
LR: Final = 1e-6
"""Of the step before each version: how much changes depends on it."""
ON_GPU: Final = (
    *("rollout.gpus_per_worker=0.26", "rollout.gpu_memory_utilization=0.3", "rollout.threads_per_worker=null"),
    "rollout.kv_cache_gib=1",  # two engines that size their caches on one card at a time disturb each other
    "learner.gpus_per_rank=0.2",
)
"""All on one card."""


@dataclass(frozen=True, slots=True)
class SyncTimes:
    """Of one model, a round each."""

    num_bytes: int
    publish_s: list[float] = field(default_factory=list)
    deliver_s: list[float] = field(default_factory=list)
    pause_s: list[float] = field(default_factory=list)
    sent_mb: list[float] = field(default_factory=list)
    """In units of 10**6 bytes."""

    @property
    def together_s(self) -> list[float]:
        return [sum(pair) for pair in zip(self.publish_s, self.deliver_s, strict=True)]

    def row(self, size: str) -> tuple[str, ...]:
        return (
            f"{size}, {self.num_bytes / 1e6:.1f} MB of trained weights",
            *(spread([1000 * value for value in values]) for values in (self.publish_s, self.deliver_s)),
            spread([1000 * value for value in self.together_s]),
            spread([self.num_bytes / 1e6 / value for value in self.together_s]),
        )


def measure(scope: Scope) -> list[Table]:
    """The tiny model and one of about 100 MB from a learner; then each of the sizes that were asked for."""
    with tempfile.TemporaryDirectory(prefix="bicot-bench-", ignore_cleanup_errors=True) as directory:
        tables = [] if scope.sync_mb or scope.on_gpu else [_from_learner(Path(directory), scope)]
        return [*tables, _staged_against_plain(Path(directory), scope)]


def _from_learner(directory: Path, scope: Scope) -> Table:
    rows = []
    for name, shape in (("tiny", TinyJanusConfig()), ("hundred-mb", HUNDRED_MB)):
        folder, size = make_model(directory, name, shape)
        # Without a KL term the learner holds no reference, which plays no part here.
        config = shapes_config(folder, [f"run.name={name}", "algorithm.kl_coef=0", "learner.cpus_per_rank=0.5"])
        with ray_session(config.cluster, plan_placement(config), directory / f"{name}-logs"):
            times = asyncio.run(_measure_model(folder, config, num_rounds=scope.pick(quick=3, full=9)))
        rows.append(times.row(size))
    return Table(
        "Weight sync through the object store",
        "One learner rank (ZeRO 0, float32) to one idle vLLM rollout worker, in two processes on one machine. "
        "Publish: out of the learner into Ray's object store. Deliver: from there into the engine, until it "
        "samples with the new weights.",
        ("model", "publish, ms", "deliver, ms", "together, ms", "MB/s"),
        tuple(rows),
    )


def _staged_against_plain(directory: Path, scope: Scope) -> Table:
    rows: list[tuple[str, ...]] = []
    for megabytes in scope.sync_mb or (scope.pick(quick=100, full=1000),):
        folder, _ = make_model(directory, f"{megabytes}-mb", wide_model(megabytes), in_bfloat16=True)
        shared = [
            "model.dtype=bfloat16", "learner.zero_stage=1", "learner.cpus_per_rank=0.5",
            "rollout.num_workers=3", "rollout.cpus_per_worker=0.4", "rollout.max_num_seqs=8",
            f"cluster.object_store_gib={2 + 2 * megabytes / 1000:g}",
            f"weight_sync.bucket_mb={min(64, max(8, megabytes // 8))}", *(ON_GPU if scope.on_gpu else ()),
        ]  # fmt: skip
        plain, staged, changes = (
            shapes_config(folder, [f"run.name={name}", *own, *shared])
            for name, own in (
                ("plain", ["weight_sync.staged=false"]), ("staged", []), ("changes", ["weight_sync.delta=true"])
            )
        )  # fmt: skip
        with ray_session(staged.cluster, plan_placement(staged), directory / f"{megabytes}-logs"):
            times = asyncio.run(_measure_ways(folder, (plain, staged, changes), scope.pick(quick=3, full=5)))
        rows += _rows(times)
    return Table(
        "Weight sync, staged against in a pause, by the object store and by IPC; all weights against changes",
        "A process that gives random bfloat16 weights to three idle vLLM rollout workers, in turns: one that loads new "
        "weights beside the old ones, from the first bucket that is published, and pauses to swap them; and one that "
        "pauses while it loads them (`weight_sync.staged: false`), once all are published. The first gets them through "
        "Ray's object store and by `weight_sync.backend: ipc`, in turns; by IPC it has them when they are published. "
        "The third has `weight_sync.delta`: it is sent what a step of AdamW on noise at a learning rate of "
        f"{LR:g} changes. "
        "Together: publish and deliver. In brackets, times of the one that pauses.",
        ("weights", "way", "sent, MB", "publish, ms", "deliver, ms", "together, ms", "GB/s", "sampling pauses, ms"),
        tuple(rows),
    )


def _rows(times: Mapping[str, SyncTimes]) -> Iterator[tuple[str, ...]]:
    base = times[IN_A_PAUSE]
    for way, own in times.items():
        together, pause = (spread([1000 * s for s in values]) for values in (own.together_s, own.pause_s))
        if own is not base:
            together += f" [{ratio(own.together_s, base.together_s)}]"
            pause += f" [{ratio(own.pause_s, base.pause_s)}]"
        yield (
            f"{own.num_bytes / 1e6:,.0f} MB",
            way,
            spread(own.sent_mb),
            *(spread([1000 * value for value in values]) for values in (own.publish_s, own.deliver_s)),
            together,
            spread([own.num_bytes / 1e9 / value for value in own.together_s]),
            pause,
        )


class _Nobody:
    """A pool without members, none of which loads what is published before it is delivered."""

    members: tuple[Member, ...] = ()


class MeasuredRollout(RolloutActor):
    """A rollout worker that tells how long sampling stood still."""

    async def pause_s(self) -> float:
        figures = self._started.figures
        return 0.0 if figures is None else figures.weight_pause_s


async def _measure_ways(
    folder: str, configs: tuple[RunConfig, RunConfig, RunConfig], num_rounds: int
) -> dict[str, SyncTimes]:
    plain, staged, changes = configs
    source = spawn(
        WeightSource,
        *(folder, staged.weight_sync.bucket_mb, staged.learner.gpus_per_rank > 0),
        name="weights",
        num_cpus=0.5,
        num_gpus=staged.learner.gpus_per_rank,
        threads=1,
        concurrency_groups=CONCURRENCY_GROUPS,
    )
    pools = [ActorPool("rollout", 1, 1, _hooks(folder, config, MeasuredRollout)) for config in configs]
    ways: dict[str, tuple[ActorPool, WeightSync]] = {
        IN_A_PAUSE: (pools[0], ObjectStoreSync(plain.weight_sync)),
        STAGED: (pools[1], ObjectStoreSync(staged.weight_sync)),
        CHANGES: (pools[2], ObjectStoreSync(changes.weight_sync)),
        BY_IPC: (pools[1], BroadcastSync(staged.weight_sync, "ipc", 1, _refuse)),
    }
    times = {way: SyncTimes(await source.num_bytes.remote()) for way in ways}
    numbers = count(1)  # a version that a worker has had is not loaded again
    try:
        await asyncio.gather(*(pool.start() for pool in pools))
        for round_number in range(num_rounds + 1):
            for way, (pool, sync) in ways.items():
                (member,) = pool.members
                paused_s = await member.handle.pause_s.remote()
                if way == CHANGES:
                    await source.step.remote(LR)
                started_s = time.perf_counter()
                listening = cast(ActorPool, _Nobody()) if way == IN_A_PAUSE else pool
                await sync.publish([source], next(numbers), listening)
                publish_s = time.perf_counter() - started_s
                await sync.deliver(pool)
                deliver_s = time.perf_counter() - started_s - publish_s
                if way != CHANGES:  # which goes on from what is in the store
                    await sync.close()  # two versions in the store would take twice the memory
                if round_number:  # the first one opens what stays open
                    times[way].sent_mb.append(sync.figures.get("sync/sent_mb", times[way].num_bytes / 1e6))
                    times[way].publish_s.append(publish_s)
                    times[way].deliver_s.append(deliver_s)
                    times[way].pause_s.append(await member.handle.pause_s.remote() - paused_s)
        return times
    finally:
        await asyncio.gather(*(pool.close() for pool in pools), *(sync.close() for _, sync in ways.values()))


def _refuse(note: str) -> None:
    """A broadcast that fails goes another way, which is not what is measured."""
    raise RuntimeError(note)


async def _sync_once(sync: ObjectStoreSync, ranks: Sequence[ActorHandle], pool: ActorPool) -> tuple[float, float]:
    """Seconds of publish and of deliver."""
    started_s = time.perf_counter()
    await sync.restore(ranks, 0)  # of a new life: a version that a worker has is not loaded again
    published_s = time.perf_counter()
    await sync.deliver(pool)
    return published_s - started_s, time.perf_counter() - published_s


async def _measure_model(folder: str, config: RunConfig, num_rounds: int) -> SyncTimes:
    learner = LearnerGroup(config, config.run.name)
    pool = ActorPool("rollout", 1, 1, _hooks(folder, config, RolloutActor))
    sync = ObjectStoreSync(config.weight_sync)
    try:
        await learner.start()
        await asyncio.gather(learner.setup(folder), pool.start())
        layout = await learner.ranks[0].weight_layout.remote()
        times = SyncTimes(sum(tensor_bytes(shape, dtype) for _, dtype, shape in layout))
        for number in range(num_rounds + 1):
            publish_s, deliver_s = await _sync_once(sync, learner.ranks, pool)
            if number:  # the first round opens what stays open
                times.publish_s.append(publish_s)
                times.deliver_s.append(deliver_s)
        return times
    finally:
        await asyncio.gather(pool.close(), learner.close(), sync.close())


def _hooks(folder: str, config: RunConfig, actor: type[RolloutActor]) -> PoolHooks:
    def make_actor(worker_id: str) -> ActorHandle:
        return spawn(
            actor,
            config,
            folder,
            worker_id,
            name=f"{config.run.name}-{worker_id}",
            num_cpus=config.rollout.cpus_per_worker,
            num_gpus=config.rollout.gpus_per_worker,
            threads=config.rollout.threads_per_worker,
        )

    async def start(handle: Any) -> None:
        await handle.start.remote()

    async def on_change(worker_id: str, state: str) -> None:
        if state == "DEAD":
            raise RuntimeError(f"{worker_id} was lost while it was measured")

    return PoolHooks(spawn=make_actor, start=start, on_change=on_change, note=print)
