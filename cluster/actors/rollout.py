"""The Ray actor around a rollout worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

import ray

from cluster.actors import folders
from cluster.actors.dedicated_placement import OwnPlacement, SharedPlaces
from cluster.actors.network import use_network_of_node
from cluster.actors.sources import check_same_sources
from cluster.actors.spawning import node_id, own_name, spawn
from cluster.actors.usage import Usage, UsageRecord
from cluster.telemetry.export import RESEND_S, Exporter
from configs.errors import RolloutError, WeightSyncError
from configs.schema import RunConfig
from rollout.records import (
    NO_VERSION,
    GroupPlace,
    GroupRequest,
    GroupRollout,
    TensorInfo,
    UInt8Array,
    WeightBucket,
    WeightVersion,
)
from rollout.weights.arriving import ArrivingVersion

if TYPE_CHECKING:
    from rollout.worker import RolloutWorker


class RolloutActor:
    """A rollout worker; asyncio, so that all its groups share one engine. Ends itself when the engine has
    failed for good: the pool then puts another in its place.

    Heavy imports are `start`'s and not the constructor's: what they raise then arrives as it is.
    """

    def __init__(
        self, config: RunConfig, model_path: str, worker_id: str, run: str = "", with_cot: bool = True
    ) -> None:
        """model_path: hub id or folder; a ~ in it is this node's home. run: its name, for its metrics. with_cot: False
        draws from the prompts alone."""
        self._config = config
        self._run = run
        self._model_path = os.path.expanduser(model_path)
        self._worker_id = worker_id
        self._with_cot = with_cot
        self._held = NO_VERSION
        self._loading = asyncio.Lock()
        self._arriving: tuple[ArrivingVersion, asyncio.Task[WeightVersion]] | None = None
        self._worker: RolloutWorker | None = None
        self._telling: asyncio.Task[None] | None = None
        self._usage = UsageRecord()

    def __repr__(self) -> str:
        return own_name()

    async def start(self) -> None:
        """Load the models. Raises what `RolloutWorker.start` raises."""
        os.environ.update(self._config.rollout.env_vars)  # not all by Ray, see `cluster.actors.spawning`
        use_network_of_node()
        check_same_sources()
        from rollout.worker import RolloutWorker

        self._worker = await RolloutWorker.start(
            self._model_path, self._config, self._worker_id, with_cot=self._with_cot
        )
        if self._worker.figures is not None:
            self._telling = asyncio.create_task(self._tell_figures(self._worker), name="tell of the engine")
        self._usage.started()

    @property
    def _started(self) -> RolloutWorker:
        if self._worker is None:
            raise RolloutError(f"rollout worker {self._worker_id} has not been started")
        return self._worker

    async def has_folder(self, path: str) -> bool:
        """See `cluster.actors.folders`."""
        return folders.is_here(path)

    async def take_folder(self, path: str, parts: Sequence[ray.ObjectRef[folders.Part]]) -> None:
        """See `cluster.actors.folders`."""
        await asyncio.to_thread(folders.unpack, path, (ray.get(part) for part in parts))

    async def roll_group(self, request: GroupRequest) -> tuple[GroupRollout, UInt8Array]:
        """Called with num_returns=2: the pictures then travel without the trajectories, and not to the launcher."""
        with self._ending_with_engine() as worker:
            return await worker.roll_group(request)

    async def probe(self, request: GroupRequest, num_tokens: int) -> GroupRollout:
        """See `GroupSampler.probe`."""
        with self._ending_with_engine() as worker:
            return await worker.probe(request, num_tokens)

    async def expect_weights(
        self, version: WeightVersion, first: int, references: Sequence[ray.ObjectRef[WeightBucket]]
    ) -> None:
        """Buckets of `version`, from number `first` on, have been exported: load them while the others are.
        `update_weights` ends what this begins, and does all of it where this was never heard."""
        if version > self._held:
            arriving, _ = self._arrival_of(version)
            arriving.told(first, references)

    async def update_weights(
        self, version: WeightVersion, references: Sequence[ray.ObjectRef[WeightBucket]]
    ) -> WeightVersion:
        """Fetch the buckets of `version`, which are all of them, and load them; returns the version now held, which may
        be a newer one.

        One after the other: a version that was long on its way must not replace what came after it, above all not
        one of a learner that has died since.
        """
        arriving, loading = self._arrival_of(version)
        arriving.told_all(references)
        try:
            return await loading
        finally:
            if self._arriving is not None and self._arriving[0] is arriving:
                self._arriving = None

    def _arrival_of(self, version: WeightVersion) -> tuple[ArrivingVersion, asyncio.Task[WeightVersion]]:
        """A version that is being loaded, or has its turn to be. An earlier one of which not all is known is given up:
        its learner has died."""
        if self._arriving is not None and not (before := self._arriving[0]).is_known:
            if before.version == version:
                return self._arriving
            if before.version < version:
                before.give_up()
        arriving = ArrivingVersion(version, self._config.weight_sync.timeout_s)
        loading = asyncio.create_task(self._load(arriving), name=f"load weight version {version.number}")
        loading.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # of one given up nobody asks
        if self._arriving is None or self._arriving[0].version <= version:
            self._arriving = arriving, loading
        return arriving, loading

    async def _load(self, arriving: ArrivingVersion) -> WeightVersion:
        async with self._loading:
            if arriving.version > self._held:
                async with aclosing(arriving.buckets()) as buckets:
                    with self._ending_with_engine() as worker:
                        await worker.update_weights(arriving.version.number, buckets)
                self._held = arriving.version
        return self._held

    async def join_collective(self, place: GroupPlace) -> str:
        """Join a weight-transfer group. Returns why that failed, or ""."""
        return await self._group_call(lambda worker: worker.collective.join_collective(place))

    async def receive_collective(self, version: WeightVersion, layout: Sequence[TensorInfo], bucket_bytes: int) -> str:
        """Load `version` from the group. Returns why that failed, or ""; it then holds what it held."""
        async with self._loading:
            why = await self._group_call(
                lambda worker: worker.collective.receive_collective(version.number, layout, bucket_bytes)
            )
            if not why:
                self._held = version
        return why

    async def abort_collective(self) -> str:
        """Break off what comes by the group, and leave it. Returns why that failed, or ""."""
        return await self._group_call(lambda worker: worker.collective.abort_collective())

    async def _group_call(self, call: Callable[[RolloutWorker], Awaitable[None]]) -> str:
        """The others' failures are no fault of this worker, which goes on: they are answered and not raised."""
        try:
            with self._ending_with_engine() as worker:
                await call(worker)
        except WeightSyncError as error:
            return str(error)
        return ""

    async def sleep(self) -> None:
        """See `RolloutWorker.sleep`."""
        with self._ending_with_engine() as worker:
            await worker.sleep()

    async def wake(self) -> None:
        """See `RolloutWorker.wake`."""
        with self._ending_with_engine() as worker:
            await worker.wake()

    async def ping(self) -> str:
        """Answered when the engine has answered, too: a process of its own, which may be frozen or hang by itself."""
        if self._worker is not None:
            with self._ending_with_engine() as worker:
                await worker.check_alive()
        return node_id()

    async def _tell_figures(self, worker: RolloutWorker) -> None:
        """The engine's own figures go from here straight to Ray's metrics, so that N workers cost the launcher none."""
        exporter = Exporter(self._run)
        while True:
            export_figures(exporter, worker, self._worker_id)
            exporter.resend()
            await asyncio.sleep(RESEND_S)

    async def usage(self) -> Usage:
        return self._usage.take()

    async def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
        if self._worker is not None:
            await self._worker.close()

    @contextmanager
    def _ending_with_engine(self) -> Iterator[RolloutWorker]:
        worker = self._started
        try:
            yield worker
        except (RolloutError, WeightSyncError):
            if not worker.is_usable:
                # Not ray.actor.exit_actor, which waits for all calls: some wait for the dead engine's answer.
                os._exit(1)
            raise


def spawn_rollout(
    config: RunConfig,
    model_path: str,
    worker_id: str,
    run: str,
    placement: OwnPlacement | SharedPlaces,
    *,
    with_cot: bool = True,
) -> ray.actor.ActorHandle:
    """Make a rollout worker, without waiting; a tensor-parallel one in a placement group of its own, and one that takes
    turns with the learner in a bundle that both share."""
    rollout = config.rollout
    is_placed = rollout.tensor_parallel_size > 1 or isinstance(placement, SharedPlaces)
    make = placement.spawn if is_placed else spawn
    return make(
        RolloutActor,
        *(config, model_path, worker_id, run, with_cot),
        name=f"{run}-{worker_id}",
        num_cpus=rollout.cpus_per_worker,
        num_gpus=rollout.gpus_per_worker,
        threads=rollout.threads_per_worker,
        runtime_env={"env_vars": dict(rollout.env_vars)},
        label_selector=rollout.node_labels,
    )


def export_figures(exporter: Exporter, worker: RolloutWorker, worker_id: str) -> None:
    """Tell of a worker's engine."""
    figures = worker.figures
    if figures is None:
        return
    for name in ("running", "waiting", "kv_cache_usage"):
        exporter.set(f"bicot_engine_{name}", getattr(figures, name), worker=worker_id)
    for name in ("prompt_tokens", "generated_tokens", "preemptions", "prefix_queries", "prefix_hits"):
        exporter.count_to(f"bicot_engine_{name}", getattr(figures, name), worker=worker_id)
    exporter.count_to("bicot_engine_weight_pause_seconds", figures.weight_pause_s, worker=worker_id)
    exporter.set("bicot_engine_weight_version", worker.weight_version, worker=worker_id)
