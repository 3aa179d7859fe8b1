"""Weight sync through Ray's object store: a real learner rank, and models of any size, to a real vLLM rollout worker.

learner actor ── publish ──► object store ── deliver ──► rollout actor ─► vLLM, weights in place
or `WeightSource`                                          one that stages, one that does not, in turns
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ray.actor import ActorHandle

from cluster.actors import RolloutActor, spawn
from cluster.benchmarks.models import HUNDRED_MB, make_model, shapes_config, wide_model
from cluster.benchmarks.report import Scope, Table, ratio, spread
from cluster.learning import LearnerGroup, ObjectStoreSync
from cluster.pools import ActorPool, PoolHooks
from cluster.pools.member import Member
from cluster.session import plan_placement, ray_session
from configs.schema import RunConfig, TinyJanusConfig
from rollout.records import WeightBucket
from rollout.weights import WeightManifest
from rollout.weights.manifest import tensor_bytes


@dataclass(frozen=True, slots=True)
class SyncTimes:
    """Of one model, a round each."""

    num_bytes: int
    publish_s: list[float] = field(default_factory=list)
    deliver_s: list[float] = field(default_factory=list)
    pause_s: list[float] = field(default_factory=list)

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
        tables = [] if scope.sync_mb else [_from_learner(Path(directory), scope)]
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
            "rollout.num_workers=2", "rollout.cpus_per_worker=0.5", "rollout.max_num_seqs=8",
            f"cluster.object_store_gib={2 + 2 * megabytes / 1000:g}",
            f"weight_sync.bucket_mb={min(64, max(8, megabytes // 8))}",
        ]  # fmt: skip
        configs = {
            staged: shapes_config(folder, [f"run.name={name}", f"weight_sync.staged={staged}", *shared])
            for name, staged in (("staged", True), ("plain", False))
        }
        with ray_session(configs[True].cluster, plan_placement(configs[True]), directory / f"{megabytes}-logs"):
            times = asyncio.run(_measure_both(folder, configs, num_rounds=scope.pick(quick=3, full=5)))
        rows += _rows(times[True], times[False])
    return Table(
        "Weight sync, staged against in a pause",
        "A process that gives random bfloat16 weights to two idle vLLM rollout workers, in turns: one that loads new "
        "weights beside the old ones, from the first bucket that is published, and pauses to swap them; and one that "
        "pauses while it loads them (`weight_sync.staged: false`), once all are published. Together: publish and "
        "deliver. In brackets, times of the other's.",
        ("weights", "way", "publish, ms", "deliver, ms", "together, ms", "GB/s", "sampling pauses, ms"),
        tuple(rows),
    )


def _rows(staged: SyncTimes, plain: SyncTimes) -> Iterator[tuple[str, ...]]:
    for way, times in (("in a pause", plain), ("staged", staged)):
        together, pause = (spread([1000 * s for s in values]) for values in (times.together_s, times.pause_s))
        if times is staged:
            together += f" [{ratio(staged.together_s, plain.together_s)}]"
            pause += f" [{ratio(staged.pause_s, plain.pause_s)}]"
        yield (
            f"{times.num_bytes / 1e6:,.0f} MB",
            way,
            *(spread([1000 * value for value in values]) for values in (times.publish_s, times.deliver_s)),
            together,
            spread([times.num_bytes / 1e9 / value for value in times.together_s]),
            pause,
        )


class WeightSource:
    """Stands where a learner would, which holds eight times as much: gives weights for a model, the same bytes for
    every tensor."""

    def __init__(self, folder: str, bucket_mb: int) -> None:
        import torch

        manifest = WeightManifest.from_folder(Path(folder))
        trained = ("model.language_model.", "lm_head.")
        self._shapes = {name: shape for name, shape in manifest.shapes.items() if name.startswith(trained)}
        self._bucket_bytes = bucket_mb * 2**20
        largest = max(tensor_bytes(shape, "bfloat16") for shape in self._shapes.values())
        self._values = (0.02 * torch.randn(largest // 2, generator=torch.Generator().manual_seed(0))).bfloat16()

    def num_bytes(self) -> int:
        return sum(tensor_bytes(shape, "bfloat16") for shape in self._shapes.values())

    def export_weights(self, version: int) -> Iterator[WeightBucket | int]:
        """As `LearnerActor.export_weights`."""
        import math

        from rollout.weights.buckets import view_bucket

        tensors, size, num_buckets = [], 0, 0
        for name, shape in self._shapes.items():
            tensors.append((name, self._values[: math.prod(shape)].view(shape)))
            size += tensors[-1][1].nbytes
            if size >= self._bucket_bytes:
                yield view_bucket(tensors)
                tensors, size, num_buckets = [], 0, num_buckets + 1
        if tensors:
            yield view_bucket(tensors)
            num_buckets += 1
        yield num_buckets


class _Nobody:
    """A pool without members, none of which loads what is published before it is delivered."""

    members: tuple[Member, ...] = ()


class MeasuredRollout(RolloutActor):
    """A rollout worker that tells how long sampling stood still."""

    async def pause_s(self) -> float:
        figures = self._started.figures
        return 0.0 if figures is None else figures.weight_pause_s


async def _measure_both(folder: str, configs: dict[bool, RunConfig], num_rounds: int) -> dict[bool, SyncTimes]:
    config = configs[True]
    source = spawn(WeightSource, folder, config.weight_sync.bucket_mb, name="weights", num_cpus=0.5, threads=1)
    pools = {
        staged: ActorPool("rollout", 1, 1, _hooks(folder, each, MeasuredRollout)) for staged, each in configs.items()
    }
    syncs = {staged: ObjectStoreSync(each.weight_sync) for staged, each in configs.items()}
    times = {staged: SyncTimes(await source.num_bytes.remote()) for staged in configs}
    try:
        for pool in pools.values():
            await pool.start()
        for number in range(num_rounds + 1):
            for staged, pool in pools.items():
                (member,) = pool.members
                paused_s = await member.handle.pause_s.remote()
                started_s = time.perf_counter()
                await syncs[staged].publish([source], number + 1, pool if staged else cast(ActorPool, _Nobody()))
                publish_s = time.perf_counter() - started_s
                await syncs[staged].deliver(pool)
                deliver_s = time.perf_counter() - started_s - publish_s
                await syncs[staged].close()  # both versions in the store would take twice the memory
                if number:
                    times[staged].publish_s.append(publish_s)
                    times[staged].deliver_s.append(deliver_s)
                    times[staged].pause_s.append(await member.handle.pause_s.remote() - paused_s)
        return times
    finally:
        await asyncio.gather(*(pool.close() for pool in pools.values()), *(sync.close() for sync in syncs.values()))


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
            threads=config.rollout.threads_per_worker,
        )

    async def start(handle: Any) -> None:
        await handle.start.remote()

    async def on_change(worker_id: str, state: str) -> None:
        if state == "DEAD":
            raise RuntimeError(f"{worker_id} was lost while it was measured")

    return PoolHooks(spawn=make_actor, start=start, on_change=on_change, note=print)
