"""Weight sync through Ray's object store, with a real learner rank and a real vLLM rollout worker.

learner actor ── publish ──► object store ── deliver ──► rollout actor ─► vLLM, weights in place
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle

from cluster.actors import RolloutActor, spawn
from cluster.benchmarks.models import HUNDRED_MB, make_model, shapes_config
from cluster.benchmarks.report import Scope, Table, spread
from cluster.learning import LearnerGroup, ObjectStoreSync
from cluster.pools import ActorPool, PoolHooks
from cluster.session import plan_placement, ray_session
from configs.schema import RunConfig, TinyJanusConfig
from rollout.weights.manifest import tensor_bytes


@dataclass(frozen=True, slots=True)
class SyncTimes:
    """Of one model, a round each."""

    num_bytes: int
    publish_s: list[float]
    deliver_s: list[float]

    def row(self, size: str) -> tuple[str, ...]:
        together = [sum(pair) for pair in zip(self.publish_s, self.deliver_s, strict=True)]
        return (
            f"{size}, {self.num_bytes / 1e6:.1f} MB of trained weights",
            spread([1000 * value for value in self.publish_s]),
            spread([1000 * value for value in self.deliver_s]),
            spread([1000 * value for value in together]),
            spread([self.num_bytes / 1e6 / value for value in together]),
        )


def measure(scope: Scope) -> list[Table]:
    """The tiny model and one of about 100 MB."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="bicot-bench-", ignore_cleanup_errors=True) as directory:
        for name, shape in (("tiny", TinyJanusConfig()), ("hundred-mb", HUNDRED_MB)):
            folder, size = make_model(Path(directory), name, shape)
            # Without a KL term the learner holds no reference, which plays no part here.
            config = shapes_config(folder, [f"run.name={name}", "algorithm.kl_coef=0", "learner.cpus_per_rank=0.5"])
            with ray_session(config.cluster, plan_placement(config), Path(directory) / f"{name}-logs"):
                times = asyncio.run(_measure_model(folder, config, num_rounds=scope.pick(quick=3, full=9)))
            rows.append(times.row(size))
    return [
        Table(
            "Weight sync through the object store",
            "One learner rank (ZeRO 0, float32) to one idle vLLM rollout worker, in two processes on one machine. "
            "Publish: out of the learner into Ray's object store. Deliver: from there into the engine, until it "
            "samples with the new weights.",
            ("model", "publish, ms", "deliver, ms", "together, ms", "MB/s"),
            tuple(rows),
        )
    ]


async def _measure_model(folder: str, config: RunConfig, num_rounds: int) -> SyncTimes:
    learner = LearnerGroup(config, config.run.name)
    pool = ActorPool("rollout", 1, 1, _hooks(folder, config))
    sync = ObjectStoreSync(config.weight_sync)
    try:
        await learner.start()
        await asyncio.gather(learner.setup(folder), pool.start())
        layout = await learner.ranks[0].weight_layout.remote()
        times = SyncTimes(sum(tensor_bytes(shape, dtype) for _, dtype, shape in layout), [], [])
        for number in range(num_rounds + 1):
            started_s = time.perf_counter()
            await sync.restore(learner.ranks, 0)  # of a new life: a version that a worker has is not loaded again
            published_s = time.perf_counter()
            await sync.deliver(pool)
            delivered_s = time.perf_counter()
            if number:  # the first round opens what stays open
                times.publish_s.append(published_s - started_s)
                times.deliver_s.append(delivered_s - published_s)
        return times
    finally:
        await asyncio.gather(pool.close(), learner.close(), sync.close())


def _hooks(folder: str, config: RunConfig) -> PoolHooks:
    def make_actor(worker_id: str) -> ActorHandle:
        return spawn(
            RolloutActor,
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
