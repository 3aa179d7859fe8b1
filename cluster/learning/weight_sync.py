"""Weight sync: version n of the learner's weights reaches every rollout worker.

    learner ranks ─► publish(n) ─► [store | collective] ─► every READY rollout worker
                                        └────────────────► a worker that joins later: catch_up

`ObjectStoreSync` is pull-based: each worker fetches the buckets from Ray's object store at its own pace,
so that a slow, dead or joining worker holds up nobody else's copy. The launcher asks for them and so owns
them: they outlive a learner that dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import ray
from ray.actor import ActorHandle

from cluster.pools import ActorPool
from cluster.pools.member import Member
from cluster.pools.remote_errors import WorkerLostError, resolve
from configs.errors import WeightSyncError
from configs.schema import WeightSyncConfig


class WeightSync(Protocol):
    """Carries weight versions from the learner to the rollout workers. It is also their pool's `LiveWeights`."""

    @property
    def version(self) -> int:
        """The newest version that was published."""

    async def publish(self, ranks: Sequence[ActorHandle], version: int, pool: ActorPool) -> None:
        """Take `version` out of the learner. When this returns, the learner may change its weights again."""

    async def restore(self, ranks: Sequence[ActorHandle], version: int) -> None:
        """Take `version` out of a learner that begins there; it may be an earlier one. READY workers need `deliver`."""

    async def deliver(self, pool: ActorPool) -> int:
        """Bring the published version to every READY worker; returns the version."""

    async def catch_up(self, worker: ActorHandle) -> int:
        """Load the published version into one worker that joins; returns the version it holds."""

    async def close(self) -> None:
        """Free the weights."""


class ObjectStoreSync:
    """Weights through Ray's object store. Works everywhere; workers may come and go."""

    def __init__(self, config: WeightSyncConfig) -> None:
        self._timeout_s = config.timeout_s
        self._version = 0
        self._buckets: list[ray.ObjectRef] = []

    @property
    def version(self) -> int:
        return self._version

    async def publish(self, ranks: Sequence[ActorHandle], version: int, pool: ActorPool) -> None:
        await self.take(ranks, version)

    async def restore(self, ranks: Sequence[ActorHandle], version: int) -> None:
        await self.take(ranks, version)

    async def take(self, ranks: Sequence[ActorHandle], version: int) -> None:
        """Put `version` into the store. Raises LearnerError when the learner is at another, WeightSyncError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                buckets = await _export(ranks, version)
        except TimeoutError as error:
            raise WeightSyncError(
                f"weight version {version} was not exported within weight_sync.timeout_s {self._timeout_s:g} s"
            ) from error
        self._version, self._buckets = version, buckets

    async def deliver(self, pool: ActorPool) -> int:
        version, buckets = self._version, self._buckets

        async def update_one(member: Member) -> None:
            try:
                await pool.call_member(
                    member, lambda handle: handle.update_weights.remote(version, buckets), self._timeout_s
                )
            except WorkerLostError:
                return  # the pool replaces it, and the newcomer catches up
            member.health.holds(version, self._version)

        await asyncio.gather(*(update_one(member) for member in pool.members))
        return version

    async def catch_up(self, worker: ActorHandle) -> int:
        if not self._buckets:
            return self._version  # nothing was published yet: these are the weights that every worker starts with
        version = self._version
        try:
            async with asyncio.timeout(self._timeout_s):
                return int(await resolve(worker.update_weights.remote(version, self._buckets)))
        except TimeoutError as error:
            raise WeightSyncError(
                f"a worker did not load weight version {version} within weight_sync.timeout_s {self._timeout_s:g} s"
            ) from error

    async def close(self) -> None:
        self._buckets = []


async def _export(ranks: Sequence[ActorHandle], version: int) -> list[ray.ObjectRef]:
    """Buckets of `version`: all ranks enter (ZeRO-3 gathers), rank 0 gives them."""
    streams = [rank.export_weights.options(num_returns="streaming").remote(version) for rank in ranks]
    buckets: list[ray.ObjectRef] = []
    for stream in streams:
        *exported, end = [reference async for reference in stream]
        await end  # raises what the export raised
        buckets += exported
    return buckets
