"""A pool of interchangeable workers: keeps so many alive, and gives each call to the least busy one.

    call ─► least busy READY member (waits when all are full) ─► result
                     │ it died, hung, or was found unusable                    call raises WorkerLostError
                     ▼
            ended and replaced: spawn ─► JOINING: start ─► STALE: catch up with the live weights ─► READY
                                                                                             ▲  │ heartbeats
    resize(n): spawns the missing; the surplus is drained, finishes its calls, and ends      └──┘

`cluster.health` says which states there are and how they follow. A lost member never comes back: its
replacement is a new one with a new id.

Every wait is bounded: a call by its own time-out, a start by `Patience.start_s` unless others answer
meanwhile, silence by the heartbeats' time-out. So whoever waits for a free member gets one, or the
error that ended the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.health import IN_SERVICE, HealthState
from cluster.pool_member import Member, Patience, PoolHooks
from cluster.remote_errors import WorkerLostError, first_line, raised_by, resolve
from configs.errors import BicotError, RunError, WeightSyncError

MAX_FAILED_STARTS = 3


@dataclass(slots=True)
class ActorPool:
    """`size` workers called `KIND-0`, `KIND-1`, …; each is given at most `max_calls` calls at once.

    fatal: errors of a worker's method after which it is of no more use, and is replaced.
    """

    kind: str
    size: int
    max_calls: int
    hooks: PoolHooks
    patience: Patience = field(default_factory=Patience)
    fatal: tuple[type[BicotError], ...] = ()
    _members: list[Member] = field(default_factory=list)
    """All that are not DEAD."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _num_spawned: int = 0
    _num_failed_starts: int = 0
    _num_lost: int = 0
    _num_waiting: int = 0
    _was_complete: bool = False
    _failure: BaseException | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members that are READY now."""
        return tuple(member for member in self._members if member.state is HealthState.READY)

    @property
    def num_ready(self) -> int:
        return len(self.members)

    @property
    def num_joining(self) -> int:
        """Members that will be READY, but for accidents."""
        return sum(member.state in (HealthState.JOINING, HealthState.STALE) for member in self._members)

    @property
    def num_lost(self) -> int:
        """Members that died or hung so far."""
        return self._num_lost

    @property
    def num_idle(self) -> int:
        """READY members without a call."""
        return sum(member.num_calls == 0 for member in self.members)

    @property
    def num_calls(self) -> int:
        """Calls that are made now, and those that wait for a free member."""
        return self._num_waiting + sum(member.num_calls for member in self._members)

    def describe(self) -> str:
        """`rollout: 1 of 2 READY; rollout-1 JOINING`."""
        others = [f"{m.worker_id} {m.state}" for m in self._members if m.state is not HealthState.READY]
        return "; ".join([f"{self.kind}: {self.num_ready} of {self.size} READY", *others])

    async def start(self) -> None:
        """Spawn all members and wait until each is READY; the first failure to start is raised."""
        self._adjust()
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None or self.num_ready >= self.size)
        self._raise_failure()
        self._was_complete = True

    async def resize(self, size: int) -> None:
        """Have `size` members from now on. Returns at once: newcomers take their time to start, and those
        that leave take theirs to finish their calls."""
        self.size = size
        self._adjust()
        surplus = len(self._in_service()) - size
        # First those that nobody will miss: not yet started, then the least busy.
        order = sorted(self._in_service(), key=lambda m: (m.state is HealthState.READY, m.num_calls))
        for member in order[: max(0, surplus)]:
            await self.drain(member)

    async def drain(self, member: Member) -> None:
        """Let a member finish its calls and then end it; when the pool is too small without it, another one joins."""
        if member.state is HealthState.JOINING:
            await self._end(member)
        else:
            member.health.drain()
            await self._tell(member)
            await self._end_if_drained(member)
        self._adjust()

    async def call(self, invoke: Callable[[ActorHandle], Any], timeout_s: float) -> Any:
        """Await `invoke(handle)`, an object reference, on the least busy member.

        Raises WorkerLostError when the member dies, needs more than `timeout_s` or proves unusable, and
        whatever else the worker's method raises.
        """
        member = await self._acquire()
        try:
            return await self.call_member(member, invoke, timeout_s)
        finally:
            member.num_calls -= 1
            await self._end_if_drained(member)
            async with self._changed:
                self._changed.notify_all()

    async def call_member(self, member: Member, invoke: Callable[[ActorHandle], Any], timeout_s: float) -> Any:
        """The same on one given member, whether it is busy or not."""
        try:
            return await asyncio.wait_for(resolve(invoke(member.handle)), timeout_s)
        except (RayActorError, WorkerLostError) as error:
            await self._lose(member, f"died: {first_line(error)}")
            raise WorkerLostError(f"{member.worker_id} died during a call") from error
        except TimeoutError as error:
            await self._lose(member, f"did not answer within {timeout_s:g} s")
            raise WorkerLostError(f"{member.worker_id} did not answer within {timeout_s:g} s") from error
        except RayTaskError as error:
            own = raised_by(error)
            if isinstance(own, self.fatal):
                await self._lose(member, f"is of no more use: {first_line(own)}")
                raise WorkerLostError(f"{member.worker_id}: {first_line(own)}") from error
            raise own from error

    async def close(self) -> None:
        """End every member, whatever it is at."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self._members:
            member.health.die()
            self.hooks.end(member.handle)
        self._members.clear()

    def _in_service(self) -> list[Member]:
        return [member for member in self._members if member.state in IN_SERVICE]

    def _adjust(self) -> None:
        """Spawn what is missing."""
        for _ in range(self.size - len(self._in_service())):
            worker_id = f"{self.kind}-{self._num_spawned}"
            self._num_spawned += 1
            member = Member(worker_id, self.hooks.spawn(worker_id))
            self._members.append(member)
            self._keep(self._live(member), f"life of {worker_id}")

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, member: Member) -> None:
        """One member from its birth on, until it is DEAD."""
        try:
            await self._tell(member)
            await self._start(member)
            await self._catch_up(member)
        except Exception as error:  # noqa: BLE001 - whatever a user's model or reward raises ends this start only
            await self._fail_to_start(member, error)
            return
        self._num_failed_starts = 0
        while not member.health.is_dead:
            try:
                await self._beat(member)
            except (RayError, WorkerLostError, WeightSyncError) as error:
                await self._lose(member, f"died: {first_line(error)}")

    async def _start(self, member: Member) -> None:
        """Wait for the start; for as long as it takes, while others do the work."""
        start = asyncio.ensure_future(self.hooks.start(member.handle))
        try:
            while not (await asyncio.wait({start}, timeout=self.patience.start_s))[0]:
                waited = f"{member.worker_id} has not started within {self.patience.start_s:g} s"
                if not self._others_go_on():
                    raise RunError(f"{waited}; has the cluster room for it, and what do Ray's logs say of it?")
                self.hooks.note(f"{waited}: it waits for room in the cluster, or hangs; {self.num_ready} others go on")
            start.result()
        finally:
            start.cancel()
        member.health.started()
        await self._tell(member)

    async def _catch_up(self, member: Member) -> None:
        while member.state is HealthState.STALE:
            held = await self.hooks.weights.catch_up(member.handle)
            # No await between the look at the live version and READY: what it holds is still the newest.
            member.health.holds(held, self.hooks.weights.version)
        await self._tell(member)

    async def _beat(self, member: Member) -> None:
        """One heartbeat: SUSPECT when the answer is late, lost when there is none."""
        patience = self.patience
        answer = asyncio.ensure_future(resolve(member.handle.ping.remote()))
        try:
            if not (await asyncio.wait({answer}, timeout=patience.heartbeat_s))[0]:
                member.health.missed()
                await self._tell(member)
                await asyncio.wait({answer}, timeout=patience.heartbeat_timeout_s - patience.heartbeat_s)
            if not answer.done():
                await self._lose(member, f"was silent for {patience.heartbeat_timeout_s:g} s")
                return
            member.node_id = answer.result()
        finally:
            answer.cancel()
        if member.state is HealthState.SUSPECT:
            member.health.answered(self.hooks.weights.version)
            await self._catch_up(member)
        await asyncio.sleep(patience.heartbeat_s)

    async def _fail_to_start(self, member: Member, error: Exception) -> None:
        if member.health.is_dead:  # it was told to leave before it had begun
            return
        await self._end(member)
        self._num_failed_starts += 1
        # Only a lost actor is worth another try at once: a missing model or a wrong option stays missing or wrong.
        if isinstance(error, RayActorError | WorkerLostError) and self._num_failed_starts < MAX_FAILED_STARTS:
            self.hooks.note(f"{member.worker_id} died while starting: {first_line(error)}; starting another")
        elif self._others_go_on():
            wait_s = self.patience.retry_start_s
            self.hooks.note(
                f"{member.worker_id} could not start: {first_line(error)}; {self.num_ready} others go on, "
                f"another try in {wait_s:g} s"
            )
            await asyncio.sleep(wait_s)
        else:
            self._failure = error
            async with self._changed:
                self._changed.notify_all()
            return
        self._adjust()

    async def _acquire(self) -> Member:
        self._num_waiting += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._failure is not None or self._free_members())
                self._raise_failure()
                member = min(self._free_members(), key=lambda candidate: candidate.num_calls)
                member.num_calls += 1
                return member
        finally:
            self._num_waiting -= 1

    def _others_go_on(self) -> bool:
        """Whether a start that fails is not the end: the pool has been complete, and somebody is READY."""
        return self._was_complete and bool(self.members)

    def _free_members(self) -> list[Member]:
        return [member for member in self.members if member.num_calls < self.max_calls]

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        own = raised_by(self._failure) if isinstance(self._failure, RayTaskError) else self._failure
        if isinstance(own, BicotError):
            raise own from self._failure.__cause__
        raise RunError(f"no {self.kind} worker could be started: {first_line(self._failure)}") from self._failure

    async def _lose(self, member: Member, reason: str) -> None:
        if member.health.is_dead:
            return
        in_service = member.state in IN_SERVICE
        self._num_lost += 1
        self.hooks.note(
            f"{member.worker_id} {reason}; {'starting another in its place' if in_service else 'it was leaving'}"
        )
        await self._end(member)
        self._adjust()

    async def _end_if_drained(self, member: Member) -> None:
        if member.state is HealthState.DRAINING and member.num_calls == 0:
            await self._end(member)

    async def _end(self, member: Member) -> None:
        member.health.die()
        self._members.remove(member)
        self.hooks.end(member.handle)
        await self._tell(member)

    async def _tell(self, member: Member) -> None:
        async with self._changed:
            self._changed.notify_all()
        await self.hooks.on_change(member.worker_id, member.state)
