"""A pool of interchangeable workers: keeps so many alive, and gives each call to the least busy one.

    call ─► least busy READY member (waits when all are full) ─► result
                     │ it died, hung, or was found unusable                    call raises WorkerLostError
                     ▼
            ended and replaced: spawn ─► JOINING: start ─► STALE: catch up with the live weights ─► READY
                                                                                             ▲  │ heartbeats
    resize(n): spawns the missing; the surplus is drained, finishes its calls, and ends      └──┘

`cluster.pools.health` says which states there are and how they follow. A lost member never comes back: its
replacement is a new one with a new id.

Every wait is bounded: a call by its own time-out, a start by `Patience.start_s` unless others answer
meanwhile, silence by the heartbeats' time-out. So whoever waits for a free member gets one, or the
error that ended the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.pools.cancellation import end_tasks
from cluster.pools.health import IN_SERVICE, HealthState
from cluster.pools.lifecycle import MemberLife
from cluster.pools.member import Member, Patience, PoolHooks
from cluster.pools.remote_errors import WorkerLostError, first_line, raised_by, resolve
from cluster.pools.waiting_calls import Turns
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
    _was_complete: bool = False
    _failure: BaseException | None = None
    _turns: Turns[Member] = field(default_factory=Turns)
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
        return len(self._turns) + sum(member.num_calls for member in self._members)

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

    async def call(self, invoke: Callable[[ActorHandle], Any], timeout_s: float, asked: list[str] | None = None) -> Any:
        """Await `invoke(handle)`, an object reference, on the least busy member.

        asked: ids of the members that were asked before, which are left alone if there is another one; the id of the
        one that is asked now joins them.
        Raises WorkerLostError when the member dies, needs more than `timeout_s` or proves unusable, and
        whatever else the worker's method raises.
        """
        member = (self._take_other(asked) if asked else None) or await self._acquire()
        if asked is not None:
            asked.append(member.worker_id)
        try:
            return await self.call_member(member, invoke, timeout_s)
        finally:
            await self._release(member)

    async def call_member(self, member: Member, invoke: Callable[[ActorHandle], Any], timeout_s: float) -> Any:
        """The same on one given member, whether it is busy or not."""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await resolve(invoke(member.handle))
        except (RayActorError, WorkerLostError) as error:
            await self._lose(member, f"died: {first_line(error)}")
            raise WorkerLostError(f"{member.worker_id} died during a call") from error
        except TimeoutError as error:
            await self._lose(member, f"did not answer within {timeout_s:g} s")
            raise WorkerLostError(f"{member.worker_id} did not answer within {timeout_s:g} s") from error
        except RayTaskError as error:
            member.hear()
            own = raised_by(error)
            if isinstance(own, self.fatal):
                await self._lose(member, f"is of no more use: {first_line(own)}")
                raise WorkerLostError(f"{member.worker_id}: {first_line(own)}") from error
            raise own from error
        member.hear()
        return answer

    async def take_out(self, worker_id: str, reason: str) -> None:
        """End a member that is of no use, and put another in its place; nothing when it has gone already."""
        for member in self._members:
            if member.worker_id == worker_id:
                await self._lose(member, reason)
                return

    async def close(self) -> None:
        """End every member, whatever it is at."""
        while self._tasks:  # one that ends may just have begun another
            await end_tasks(set(self._tasks))
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
        life = MemberLife(member, self.hooks, self.patience, self._tell, self._num_others)
        try:
            await life.begin()
        except Exception as error:  # noqa: BLE001 - whatever a user's model or reward raises ends this start only
            await self._fail_to_start(member, error)
            return
        self._num_failed_starts = 0
        while not member.health.is_dead:
            try:
                if (reason := await life.beat()) is not None:
                    await self._lose(member, reason)
            except (RayError, WorkerLostError, WeightSyncError) as error:
                await self._lose(member, f"died: {first_line(error)}")

    async def _fail_to_start(self, member: Member, error: Exception) -> None:
        if member.health.is_dead:  # it was told to leave before it had begun
            return
        await self._end(member)
        self._num_failed_starts += 1
        # Only a lost actor is worth another try at once: a missing model or a wrong option stays missing or wrong.
        if isinstance(error, RayActorError | WorkerLostError) and self._num_failed_starts < MAX_FAILED_STARTS:
            self.hooks.note(f"{member.worker_id} died while starting: {first_line(error)}; starting another")
        elif num_others := self._num_others():
            wait_s = self.patience.retry_start_s
            self.hooks.note(
                f"{member.worker_id} could not start: {first_line(error)}; {num_others} others go on, "
                f"another try in {wait_s:g} s"
            )
            await asyncio.sleep(wait_s)
        else:
            self._failure = error
            await self._announce()
            return
        self._adjust()

    async def _acquire(self) -> Member:
        turn = self._turns.join()
        self._hand_out()
        try:
            member = await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and (member := turn.result()) is not None:
                await self._release(member)
            raise
        if member is None:
            self._raise_failure()
        assert member is not None
        return member

    async def _release(self, member: Member) -> None:
        member.num_calls -= 1
        await self._end_if_drained(member)
        self._hand_out()

    def _hand_out(self) -> None:
        if self._failure is not None:
            self._turns.end()
        else:
            self._turns.serve(self._take_free)

    def _take_free(self) -> Member | None:
        """The least busy member that may have one more call, which then counts."""
        free = [member for member in self.members if member.num_calls < self.max_calls]
        if not free:
            return None
        member = min(free, key=lambda candidate: candidate.num_calls)
        member.num_calls += 1
        return member

    def _take_other(self, asked: Collection[str]) -> Member | None:
        """The least busy READY member but for these, beyond `max_calls` if need be: it stands in for one that fails."""
        others = [member for member in self.members if member.worker_id not in asked]
        member = min(others, key=lambda candidate: candidate.num_calls, default=None)
        if member is not None:
            member.num_calls += 1
        return member

    def _num_others(self) -> int:
        """READY members, because of which a start that fails is not the end; none before the pool was complete."""
        return self.num_ready if self._was_complete else 0

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
        await self._announce()
        await self.hooks.on_change(member.worker_id, member.state)

    async def _announce(self) -> None:
        """Something has changed that `start` or a call may wait for."""
        self._hand_out()
        async with self._changed:
            self._changed.notify_all()
