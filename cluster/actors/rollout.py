"""The Ray actor around a rollout worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray

from cluster.actors.spawning import node_id
from configs.errors import RolloutError, WeightSyncError
from configs.schema import RunConfig
from rollout.records import GroupRequest, GroupRollout, UInt8Array, WeightBucket


class RolloutActor:
    """A rollout worker; asyncio, so that all its groups share one engine. Ends itself when the engine has
    failed for good: the pool then puts another in its place."""

    def __init__(self, config: RunConfig, model_path: str, worker_id: str) -> None:
        from rollout.worker import RolloutWorker

        self._worker = RolloutWorker(model_path, config, worker_id)

    async def start(self) -> None:
        await self._worker.start()

    async def roll_group(self, request: GroupRequest) -> tuple[GroupRollout, UInt8Array]:
        """Called with num_returns=2: the pictures then travel without the trajectories, and not to the launcher."""
        with self._ending_with_engine():
            return await self._worker.roll_group(request)

    async def update_weights(self, version: int, references: Sequence[ray.ObjectRef[WeightBucket]]) -> int:
        """Fetch the buckets of `version` and load them; returns the version now held."""
        buckets = await asyncio.gather(*references)
        with self._ending_with_engine():
            await self._worker.update_weights(version, buckets)
        return version

    async def join_collective(self, master_address: str, master_port: int, rank_offset: int, world_size: int) -> None:
        await self._worker.join_collective(master_address, master_port, rank_offset, world_size)

    async def receive_collective(
        self, version: int, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        with self._ending_with_engine():
            await self._worker.receive_collective(version, names, dtypes, shapes)

    async def ping(self) -> str:
        return node_id()

    async def close(self) -> None:
        await self._worker.close()

    @contextmanager
    def _ending_with_engine(self) -> Iterator[None]:
        try:
            yield
        except (RolloutError, WeightSyncError):
            if not self._worker.is_usable:
                # Not ray.actor.exit_actor, which waits for all calls: some wait for the dead engine's answer.
                os._exit(1)
            raise
