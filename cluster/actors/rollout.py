"""The Ray actor around a rollout worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray

from cluster.actors.spawning import node_id, use_network_of_node
from configs.errors import RolloutError, WeightSyncError
from configs.schema import RunConfig
from rollout.records import GroupRequest, GroupRollout, UInt8Array, WeightBucket

if TYPE_CHECKING:
    from rollout.worker import RolloutWorker


class RolloutActor:
    """A rollout worker; asyncio, so that all its groups share one engine. Ends itself when the engine has
    failed for good: the pool then puts another in its place."""

    def __init__(self, config: RunConfig, model_path: str, worker_id: str) -> None:
        use_network_of_node()
        self._config = config
        self._model_path = model_path
        self._worker_id = worker_id
        self._worker: RolloutWorker | None = None

    async def start(self) -> None:
        """Load the models. Raises what `RolloutWorker.start` raises."""
        from rollout.worker import RolloutWorker

        self._worker = await RolloutWorker.start(self._model_path, self._config, self._worker_id)

    @property
    def _started(self) -> RolloutWorker:
        if self._worker is None:
            raise RolloutError(f"rollout worker {self._worker_id} has not been started")
        return self._worker

    async def roll_group(self, request: GroupRequest) -> tuple[GroupRollout, UInt8Array]:
        """Called with num_returns=2: the pictures then travel without the trajectories, and not to the launcher."""
        with self._ending_with_engine() as worker:
            return await worker.roll_group(request)

    async def update_weights(self, version: int, references: Sequence[ray.ObjectRef[WeightBucket]]) -> int:
        """Fetch the buckets of `version` and load them; returns the version now held."""
        buckets = await asyncio.gather(*references)
        with self._ending_with_engine() as worker:
            await worker.update_weights(version, buckets)
        return version

    async def join_collective(self, master_address: str, master_port: int, rank_offset: int, world_size: int) -> None:
        await self._started.join_collective(master_address, master_port, rank_offset, world_size)

    async def receive_collective(
        self, version: int, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        with self._ending_with_engine() as worker:
            await worker.receive_collective(version, names, dtypes, shapes)

    async def ping(self) -> str:
        return node_id()

    async def close(self) -> None:
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
