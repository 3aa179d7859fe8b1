"""Weight sync by NCCL broadcast, from learner GPU to rollout GPUs, with the object store to fall back on.

    publish(n) ─► group of rank 0 and all READY workers (formed anew when they have changed) ─► broadcast
                     │ a member died or stalled: rank 0 gives the broadcast up
                     └─► ObjectStoreSync publishes and delivers n; the group is formed anew next time
    a worker that joins later ─► ObjectStoreSync

A collective with a dead member is of no use to the others, so every wait has a time-out, and a group
is never used again after a failure. An engine that stays in a broadcast answers no heartbeat, and is replaced.
Needs GPUs; on a CPU, what goes on around the broadcast is tested, and the broadcast itself only pretends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from cluster.learning.learner_group import LearnerLostError
from cluster.learning.weight_sync import ObjectStoreSync
from cluster.pools import ActorPool
from cluster.pools.member import Member
from cluster.pools.remote_errors import first_line, resolve
from configs.errors import LearnerError, WeightSyncError
from configs.schema import WeightSyncConfig
from rollout.records import NO_VERSION, WeightVersion

GIVE_UP_TIMEOUT_S: Final = 30.0
"""For the learner's ranks to let go of a broadcast that failed."""


class NcclSync:
    """`WeightSync` over NCCL; `workers_per_engine` is the engines' tensor-parallel size."""

    def __init__(self, config: WeightSyncConfig, workers_per_engine: int, note: Callable[[str], None]) -> None:
        self._timeout_s = config.timeout_s
        self._workers_per_engine = workers_per_engine
        self._note = note
        self._store = ObjectStoreSync(config)
        self._ranks: tuple[ActorHandle, ...] = ()
        self._version = WeightVersion()
        self._group: tuple[str, ...] = ()
        """Ids of the workers in the NCCL group; empty when there is none."""
        self._needs_store = False

    @property
    def version(self) -> WeightVersion:
        return self._version

    async def publish(self, ranks: Sequence[ActorHandle], number: int, pool: ActorPool) -> None:
        version = WeightVersion(self._version.life, number)
        # No await between these two: a worker that becomes READY later has caught up with this version.
        self._ranks, self._version = tuple(ranks), version
        members = pool.members
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._broadcast(members)
            self._needs_store = False
            for member in members:
                member.health.holds(version, version)
        except (TimeoutError, WeightSyncError, RayActorError) as error:
            self._group = ()
            self._needs_store = True
            self._note(f"weight version {number} goes through the object store; NCCL failed: {first_line(error)}")
            await self._take_after_failure(ranks, version)

    async def restore(self, ranks: Sequence[ActorHandle], number: int) -> None:
        version = WeightVersion(self._version.life + 1, number)
        self._ranks, self._version = tuple(ranks), version
        self._group = ()  # the ranks are new ones
        self._needs_store = True
        await self._store.take(ranks, version)

    async def deliver(self, pool: ActorPool) -> int:
        if self._needs_store:
            return await self._store.deliver(pool)
        return self._version.number

    async def catch_up(self, worker: ActorHandle) -> WeightVersion:
        if not self._ranks:
            return self._version  # nothing was published yet: these are the weights that every worker starts with
        try:
            await self._store.take(self._ranks, self._version)
        except LearnerError:
            return NO_VERSION  # the learner has made another step meanwhile, so the pool asks for that one now
        return await self._store.catch_up(worker)

    async def close(self) -> None:
        await self._store.close()

    async def _take_after_failure(self, ranks: Sequence[ActorHandle], version: WeightVersion) -> None:
        """Raises LearnerLostError when rank 0 does not come back from the broadcast either."""
        calls = [rank.give_up_collective.options(concurrency_group="files").remote() for rank in ranks]
        given_up = asyncio.gather(
            *map(resolve, calls), return_exceptions=True
        )  # of a rank that is dead, `take` says so
        await asyncio.wait({given_up}, timeout=GIVE_UP_TIMEOUT_S)
        try:
            await self._store.take(ranks, version)
        except WeightSyncError as error:
            raise LearnerLostError(f"the learner does not come back from a broadcast that failed: {error}") from error

    async def _broadcast(self, members: Sequence[Member]) -> None:
        ids = tuple(member.worker_id for member in members)
        if ids != self._group:
            await self._form_group(members)
            self._group = ids
        layout = await self._ranks[0].weight_layout.remote()
        names, dtypes, shapes = (list(column) for column in zip(*layout, strict=True))
        sent = [rank.send_collective.remote(self._version.number) for rank in self._ranks]
        received = [member.handle.receive_collective.remote(self._version, names, dtypes, shapes) for member in members]
        await asyncio.gather(*sent, *received)

    async def _form_group(self, members: Sequence[Member]) -> None:
        address, port = await self._ranks[0].free_port.remote()
        world_size = 1 + len(members) * self._workers_per_engine
        joined = [rank.join_collective.remote(address, port, world_size) for rank in self._ranks]
        joined += [
            member.handle.join_collective.remote(address, port, 1 + index * self._workers_per_engine, world_size)
            for index, member in enumerate(members)
        ]
        await asyncio.gather(*joined)
