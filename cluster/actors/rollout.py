"""The Ray actor around a rollout worker."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Final

import ray

from cluster.actors import folders
from cluster.actors.network import use_network_of_node
from cluster.actors.sources import check_same_sources
from cluster.actors.spawning import node_id
from cluster.actors.usage import Usage, UsageRecord
from cluster.telemetry.export import RESEND_S, Exporter
from configs.errors import RolloutError, WeightSyncError
from configs.schema import RunConfig
from rollout.records import NO_VERSION, GroupRequest, GroupRollout, UInt8Array, WeightBucket, WeightVersion

if TYPE_CHECKING:
    from rollout.worker import RolloutWorker

_AHEAD: Final = 2
"""Buckets of weights that are fetched while one is loaded."""


async def arriving(
    references: Sequence[Awaitable[WeightBucket]], patience_s: float
) -> AsyncGenerator[WeightBucket, None]:
    """The buckets in their order, however long all of them take; the next ones are on their way meanwhile, and none is
    held after the next was asked for. Raises WeightSyncError when one has not come `patience_s` after it was asked for:
    Ray may wait for ever for one that it could not map into a process without memory."""
    fetching: deque[asyncio.Future[WeightBucket]] = deque()
    coming = iter(references)
    try:
        for number in range(len(references)):
            fetching.extend(asyncio.ensure_future(each) for each in islice(coming, _AHEAD + 1 - len(fetching)))
            bucket = fetching.popleft()
            if not (await asyncio.wait({bucket}, timeout=patience_s))[0]:
                bucket.cancel()
                raise WeightSyncError(
                    f"bucket {number + 1} of {len(references)} of the weights did not come for {patience_s:g} s"
                )
            yield bucket.result()
            del bucket
    finally:
        for each in fetching:
            each.cancel()


class RolloutActor:
    """A rollout worker; asyncio, so that all its groups share one engine. Ends itself when the engine has
    failed for good: the pool then puts another in its place.

    Heavy imports are `start`'s and not the constructor's: what they raise then arrives as it is.
    """

    def __init__(self, config: RunConfig, model_path: str, worker_id: str, run: str = "") -> None:
        """model_path: hub id or folder; a ~ in it is this node's home. run: its name, for its metrics."""
        self._config = config
        self._run = run
        self._model_path = os.path.expanduser(model_path)
        self._worker_id = worker_id
        self._held = NO_VERSION
        self._loading = asyncio.Lock()
        self._worker: RolloutWorker | None = None
        self._telling: asyncio.Task[None] | None = None
        self._usage = UsageRecord()

    async def start(self) -> None:
        """Load the models. Raises what `RolloutWorker.start` raises."""
        os.environ.update(self._config.rollout.env_vars)  # not all by Ray, see `cluster.actors.spawning`
        use_network_of_node()
        check_same_sources()
        from rollout.worker import RolloutWorker

        self._worker = await RolloutWorker.start(self._model_path, self._config, self._worker_id)
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

    async def update_weights(
        self, version: WeightVersion, references: Sequence[ray.ObjectRef[WeightBucket]]
    ) -> WeightVersion:
        """Fetch the buckets of `version` and load them; returns the version now held, which may be a newer one.

        One after the other: a version that was long on its way must not replace what came after it, above all not
        one of a learner that has died since.
        """
        async with self._loading:
            if version > self._held:
                async with aclosing(arriving(references, self._config.weight_sync.timeout_s)) as buckets:
                    with self._ending_with_engine() as worker:
                        await worker.update_weights(version.number, buckets)
                self._held = version
        return self._held

    async def join_collective(self, master_address: str, master_port: int, rank_offset: int, world_size: int) -> None:
        await self._started.join_collective(master_address, master_port, rank_offset, world_size)

    async def receive_collective(
        self, version: WeightVersion, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        async with self._loading:
            with self._ending_with_engine() as worker:
                await worker.receive_collective(version.number, names, dtypes, shapes)
            self._held = version

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
