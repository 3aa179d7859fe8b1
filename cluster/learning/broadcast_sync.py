"""Weight sync by broadcast, from the learner's rank 0 to the processes that sample; the object store to fall back on.

    publish(n) ─► group of rank 0 and all READY workers (formed anew when they have changed) ─► broadcast
                     │ a member died or stalled
                     ├─► all leave the group; who does not answer is left out; the others form another ─► broadcast
                     └─► failed twice: ObjectStoreSync publishes and delivers n; a group is formed anew next time
    a worker that joins later, or was left out ─► ObjectStoreSync

Every wait is bounded (`rollout.weights.groups`), and a group is never used again after a failure. A member costs its
own membership: one that died is replaced by the pool, one that stalled is STALE until it has caught up, and the learner
and the others go on. On GPUs the group is NCCL's, and on CPUs, where the tests run it, gloo's; or it is that of the
processes of rank 0's node, which open its memory by CUDA IPC. Workers on other nodes then load from the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from ray.actor import ActorHandle

from cluster.learning.learner_group import LearnerLostError
from cluster.learning.weight_sync import ObjectStoreSync, WeightSync
from cluster.pools import ActorPool
from cluster.pools.cancellation import end_tasks
from cluster.pools.member import Member
from cluster.pools.remote_errors import first_line, raised_by, resolve
from configs.errors import LearnerError, WeightSyncError
from configs.schema import RunConfig, WeightSyncConfig
from rollout.records import NO_VERSION, GroupPlace, WeightVersion

_MOST_PATIENCE_S: Final = 30.0
"""In which a bucket does not move; `weight_sync.timeout_s` where that is shorter."""
_ANSWER_S: Final = 10.0
"""In which a member that has been told to leave answers, if it is well."""
_LEARNER_ANSWER_S: Final = 30.0
"""The same for the learner, which gathers what ZeRO-3 has partitioned to the end."""
_TRIES: Final = 2


class BroadcastSync:
    """`WeightSync` by broadcast; `workers_per_engine` is the engines' tensor-parallel size."""

    def __init__(
        self,
        config: WeightSyncConfig,
        transport: Literal["nccl", "ipc"],
        workers_per_engine: int,
        note: Callable[[str], None],
    ) -> None:
        self._transport = transport
        self._timeout_s = config.timeout_s
        self._patience_s = min(config.timeout_s, _MOST_PATIENCE_S)
        self._bucket_bytes = config.bucket_mb * 2**20
        self._workers_per_engine = workers_per_engine
        self._note = note
        self._store = ObjectStoreSync(config, note)
        self._ranks: tuple[ActorHandle, ...] = ()
        self._version = WeightVersion()
        self._group: tuple[str, ...] = ()
        """Ids of the workers in the group; empty when there is none."""
        self._needs_store = False
        self._told_of = ""
        """The workers out of reach."""

    @property
    def version(self) -> WeightVersion:
        return self._version

    async def publish(self, ranks: Sequence[ActorHandle], number: int, pool: ActorPool) -> None:
        version = WeightVersion(self._version.life, number)
        # No await between these two: a worker that becomes READY later has caught up with this version.
        self._ranks, self._version = tuple(ranks), version
        members, why = list(pool.members), ""
        members = await self._within_reach(members)
        for _ in range(_TRIES):
            if not members:
                break
            why = await self._try_broadcast(members, pool)
            if not why:
                for member in members:
                    member.health.holds(version, version)
                break
            members = [member for member in members if member in pool.members]
        left_out = any(member.health.held_version != version for member in pool.members)
        self._needs_store = bool(why) or not members or left_out
        if not self._needs_store:
            return
        if why:
            self._note(f"weight version {number} goes through the object store; the broadcast failed: {why}")
        await self._store.take(ranks, version)

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

    @property
    def figures(self) -> Mapping[str, float]:
        return {}

    async def close(self) -> None:
        await self._store.close()

    async def _within_reach(self, members: list[Member]) -> list[Member]:
        """Those that the transport joins with rank 0."""
        if self._transport == "nccl":
            return members
        node = await self._ranks[0].node.remote()
        others = ", ".join(member.worker_id for member in members if member.node_id != node)
        if others and others != self._told_of:
            self._note(f"{others} load new weights from the object store: IPC ends at the node of the learner's rank 0")
        self._told_of = others
        return [member for member in members if member.node_id == node]

    async def _try_broadcast(self, members: Sequence[Member], pool: ActorPool) -> str:
        """Why it failed, or "". Who was at fault is no READY member of the pool any more."""
        ids = tuple(member.worker_id for member in members)
        if ids != self._group:
            self._group = ()
            if why := await self._form_group(members, pool):
                return why
            self._group = ids
        layout = await self._ranks[0].weight_layout.remote()
        version = self._version
        why = await self._together(
            [rank.send_collective.remote(version.number, self._bucket_bytes) for rank in self._ranks],
            {
                member: lambda handle: handle.receive_collective.remote(version, layout, self._bucket_bytes)
                for member in members
            },
            pool,
        )
        if why:
            self._group = ()
        return why

    async def _form_group(self, members: Sequence[Member], pool: ActorPool) -> str:
        address, port = await self._ranks[0].free_port.remote()
        if self._transport == "ipc":
            address = "127.0.0.1"  # members are on this machine, and nobody else is asked in
        world_size = 1 + len(members) * self._workers_per_engine

        def place(rank: int) -> GroupPlace:
            return GroupPlace(address, port, rank, world_size, self._patience_s, self._transport)

        def join(index: int) -> Callable[[ActorHandle], Any]:
            return lambda handle: handle.join_collective.remote(place(1 + index * self._workers_per_engine))

        learner = [rank.join_collective.remote(place(0)) for rank in self._ranks]
        return await self._together(learner, {member: join(index) for index, member in enumerate(members)}, pool)

    async def _together(
        self, learner: Sequence[Any], calls: dict[Member, Callable[[ActorHandle], Any]], pool: ActorPool
    ) -> str:
        """Calls that succeed or fail together: why they failed, or "". When the first one fails, all are told to leave;
        a member that does not answer then has fallen behind. Raises what the learner raises, but for WeightSyncError,
        and LearnerLostError where it does not come back.
        """
        tasks = {
            asyncio.create_task(pool.load(member, call, self._timeout_s + 2 * _ANSWER_S)): member
            for member, call in calls.items()
        }
        sending = {asyncio.create_task(_why_not(call)) for call in learner}
        every: set[asyncio.Future[Any]] = {*tasks, *sending}
        try:
            why = await self._first_failure(every)
            if why:
                every |= self._leave(calls)
                await asyncio.wait(every, timeout=_ANSWER_S)
                for task, member in tasks.items():
                    if not task.done():
                        await pool.fell_behind(member, f"did not answer for {_ANSWER_S:g} s after a broadcast failed")
                if (await asyncio.wait(sending, timeout=_LEARNER_ANSWER_S))[1]:
                    raise LearnerLostError("the learner does not come back from a broadcast that failed")
            return why
        except BaseException:
            every |= self._leave(calls)
            raise
        finally:
            await end_tasks(every)

    async def _first_failure(self, every: set[asyncio.Future[Any]]) -> str:
        """Why the first one that fails does, or "" when all have succeeded."""
        waiting = every
        try:
            async with asyncio.timeout(self._timeout_s):
                while waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        if (why := task.result()) != "":
                            return why or "a worker was lost"
        except TimeoutError:
            return f"it took longer than weight_sync.timeout_s {self._timeout_s:g} s"
        return ""

    def _leave(self, members: Iterable[Member]) -> set[asyncio.Future[Any]]:
        """Tell all to break off what they are at."""
        calls = [rank.abort_collective.options(concurrency_group="pulse").remote() for rank in self._ranks]
        calls += [member.handle.abort_collective.remote() for member in members]
        return {asyncio.ensure_future(resolve(call)) for call in calls}


def make_weight_sync(config: RunConfig, note: Callable[[str], None]) -> WeightSync:
    """The way that `weight_sync.backend` asks for."""
    if config.weight_backend == "object_store":
        return ObjectStoreSync(config.weight_sync, note)
    return BroadcastSync(config.weight_sync, config.weight_backend, config.rollout.tensor_parallel_size, note)


async def _why_not(call: Awaitable[Any]) -> str:
    """Why the learner's end of a broadcast failed, or "". Raises what is no failure of the group."""
    try:
        await call
    except Exception as error:
        if isinstance(raised_by(error), WeightSyncError):
            return first_line(error)
        raise
    return ""
