"""The Ray actor around a rollout worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

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
from rollout.weights.delta import UnfitDeltaError, WeightReplica

if TYPE_CHECKING:
    from rollout.worker import RolloutWorker

SentVersion = tuple[WeightVersion, Sequence["ray.ObjectRef[Any]"]]
"""A version and all of its buckets."""


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
        self._replica = WeightReplica() if config.weight_sync.delta else None
        self._num_unfit_deltas = 0
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
        self,
        version: WeightVersion,
        first: int,
        references: Sequence[ray.ObjectRef[Any]],
        base: WeightVersion | None = None,
    ) -> None:
        """Buckets of `version`, from number `first` on, have been exported: load them while the others are.
        `update_weights` ends what this begins, and does all of it where this was never heard.

        base: the version that they are changes of; a worker that does not hold it passes them over."""
        is_begun = self._arriving is not None and self._arriving[0].version == version
        is_fit = base is None or is_begun or (self._replica is not None and self._replica.version == base)
        if version > self._held and is_fit:
            arriving, _ = self._arrival_of(version)
            arriving.told(first, references)

    async def update_weights(
        self, version: WeightVersion, references: Sequence[ray.ObjectRef[Any]], earlier: Sequence[SentVersion] = ()
    ) -> WeightVersion:
        """Fetch the buckets of `version`, which are all of them, and load them; returns the version now held, which may
        be a newer one.

        earlier: where the buckets are changes, the versions before: a whole one, then those of which each is the
        changes of the one before it. What this worker lacks of them is fetched, too; and all of them where the changes
        do not fit what it holds.

        One after the other: a version that was long on its way must not replace what came after it, above all not
        one of a learner that has died since.
        """
        try:
            return await self._load_all(version, references, earlier)
        except UnfitDeltaError:
            if self._replica is None:
                raise
            self._num_unfit_deltas += 1
            self._replica.forget()
        return await self._load_all(version, references, earlier)

    async def _load_all(
        self, version: WeightVersion, references: Sequence[ray.ObjectRef[Any]], earlier: Sequence[SentVersion]
    ) -> WeightVersion:
        arriving, loading = self._arrival_of(version, earlier)
        arriving.told_all(references)
        try:
            return await loading
        finally:
            if self._arriving is not None and self._arriving[0] is arriving:
                self._arriving = None

    def _arrival_of(
        self, version: WeightVersion, earlier: Sequence[SentVersion] = ()
    ) -> tuple[ArrivingVersion, asyncio.Task[WeightVersion]]:
        """A version that is being loaded, or has its turn to be. An earlier one of which not all is known is given up:
        its learner has died."""
        if self._arriving is not None and not (before := self._arriving[0]).is_known:
            if before.version == version:
                return self._arriving
            if before.version < version:
                before.give_up()
        arriving = ArrivingVersion(version, self._config.weight_sync.timeout_s)
        loading = asyncio.create_task(self._load(arriving, earlier), name=f"load weight version {version.number}")
        loading.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # of one given up nobody asks
        if self._arriving is None or self._arriving[0].version <= version:
            self._arriving = arriving, loading
        return arriving, loading

    async def _load(self, arriving: ArrivingVersion, earlier: Sequence[SentVersion]) -> WeightVersion:
        async with self._loading:
            if arriving.version > self._held:
                await self._catch_up(earlier)
                async with self._whole(arriving) as buckets:
                    with self._ending_with_engine() as worker:
                        await worker.update_weights(arriving.version.number, buckets)
                self._held = arriving.version
        return self._held

    async def _catch_up(self, earlier: Sequence[SentVersion]) -> None:
        """Bring the replica to the last of these versions; the engine stays as it is."""
        held = self._replica.version if self._replica is not None else None
        known = [version for version, _ in earlier]
        for version, references in earlier[known.index(held) + 1 if held in known else 0 :]:
            arriving = ArrivingVersion(version, self._config.weight_sync.timeout_s)
            arriving.told_all(references)
            async with self._whole(arriving) as buckets:
                async for _ in buckets:
                    pass

    @asynccontextmanager
    async def _whole(self, arriving: ArrivingVersion) -> AsyncIterator[AsyncIterator[WeightBucket]]:
        """The buckets of a version with all of its weights, whatever they come as."""
        async with aclosing(arriving.buckets()) as buckets:
            if self._replica is None:
                yield buckets
            else:
                async with aclosing(self._replica.follow(arriving.version, buckets)) as followed:
                    yield followed

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
            exporter.count_to("bicot_unfit_deltas", self._num_unfit_deltas, worker=self._worker_id)
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
