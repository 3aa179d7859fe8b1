"""A pool of interchangeable workers: keeps so many alive, and gives each call to the least busy one.

    call ─► least busy READY member (waits when all are full) ─► result, or one of the pool's own errors
                     │ it died, hung, or was found unusable                    call raises WorkerLostError
                     ▼
            ended and replaced: spawn ─► JOINING: start ─► STALE: catch up with the live weights ─► READY
                                                                                             ▲  │ heartbeats
    resize(n): spawns the missing; the surplus is drained, finishes its calls, and ends      └──┘

`cluster.pools.health` says which states there are and how they follow. A lost member never comes back: its
replacement is a new one with a new id.

A call raises errors of bicot only, whatever the worker's method or Ray raise (`cluster.pools.remote_errors`):
one picture's accident must not end a run. What is wrong with the work itself ends it by the bound on attempts,
and work that kills every worker that is given it by `cluster.pools.losses`.

Every wait is bounded: a call by its own time-out, a start by `Patience.start_s` from when the worker has its
place, silence by the heartbeats' time-out. So whoever waits for a free member gets one, or the error that ended
the pool.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from cluster.pools.calls import LateError, ask
from cluster.pools.cancellation import end_tasks
from cluster.pools.health import IN_SERVICE, STARTED, HealthState
from cluster.pools.lifecycle import MemberLife
from cluster.pools.losses import Losses
from cluster.pools.member import LostWeightsError, Member, Membership, Patience, PoolHooks
from cluster.pools.remote_errors import WorkerLostError, first_line, raised_by, start_error, told
from cluster.pools.waiting_calls import Turns
from configs.errors import BicotError, RunError

MAX_FAILED_STARTS = 3


@dataclass(slots=True)
class ActorPool(Membership):
    """`size` workers called `KIND-0`, `KIND-1`, …; each is given at most `max_calls` calls at once.

    fatal: errors of a worker's method after which it is of no more use, and is replaced.
    """

    max_calls: int
    hooks: PoolHooks
    patience: Patience = field(default_factory=Patience)
    fatal: tuple[type[BicotError], ...] = ()
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _num_spawned: int = 0
    _num_failed_starts: int = 0
    _num_lost: int = 0
    _losses: Losses = field(default_factory=Losses)
    _was_complete: bool = False
    _failure: Exception | None = None
    _turns: Turns[Member] = field(default_factory=Turns)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def num_lost(self) -> int:
        """Members that died or hung so far."""
        return self._num_lost

    @property
    def num_calls(self) -> int:
        """Calls that are made now, and those that wait for a free member."""
        return len(self._turns) + sum(member.num_calls for member in self._members)

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
        # First those that nobody will miss: not yet started, then the least busy; of equals the newest, so that what
        # came last empties first, and an autoscaler finds idle the nodes that it added for the pool.
        order = [*reversed(self._in_service())]
        order.sort(key=lambda m: (m.state is HealthState.READY, m.num_calls))
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

        asked: ids of the members that were asked before: another one stands in for them, beyond `max_calls` if need
        be. The id of the one that is asked now joins them.
        Raises WorkerLostError when the member dies, needs more than `timeout_s` or proves unusable; CallFailedError
        for any other accident; and what the worker's method raises on purpose.
        """
        member = (self._take(math.inf, but=asked) if asked else None) or await self._acquire()
        if asked is not None:
            asked.append(member.worker_id)
        try:
            return await self.call_member(member, invoke, timeout_s)
        finally:
            await self._release(member)

    async def call_member(self, member: Member, invoke: Callable[[ActorHandle], Any], timeout_s: float) -> Any:
        """The same on one given member, whether it is busy or not."""
        try:
            answer = await ask(member, invoke, timeout_s, self.hooks.give_up)
        except WorkerLostError as error:
            await self._lose(member, f"died: {told(error.__cause__ or error)}", in_call=True)
            raise
        except LateError as error:
            await self._lose(member, str(error), in_call=True)
            raise WorkerLostError(f"{member.worker_id} {error}") from error
        except BicotError as error:
            if not isinstance(raised_by(error.__cause__ or error), self.fatal):
                self._losses.answered()
                raise
            await self._lose(member, f"is of no more use: {told(error.__cause__ or error)}", in_call=True)
            raise WorkerLostError(f"{member.worker_id}: {told(error.__cause__ or error)}") from error
        self._losses.answered()
        return answer

    async def load(self, member: Member, invoke: Callable[[ActorHandle], Any], timeout_s: float) -> Any | None:
        """Have a member load something that all need, such as new weights; None when it fell behind, or is gone."""
        try:
            return await ask(member, invoke, timeout_s)
        except LateError as error:
            await self.fell_behind(member, str(error))
        except LostWeightsError as error:
            await self.fell_behind(member, f"has to wait: {first_line(error)}")
        except WorkerLostError as error:
            await self._lose(member, f"died: {told(error.__cause__ or error)}")
        except BicotError as error:
            await self._lose(member, f"could not load what it needs: {told(error.__cause__ or error)}")
        return None

    async def fell_behind(self, member: Member, why: str) -> None:
        """A member has not loaded what the others have: it is STALE, and catches up by itself."""
        member.health.falls_behind()
        self.hooks.note(f"{member.worker_id} {why}; it is given no work until it has caught up")
        await self._tell(member)

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
            member.die(self.hooks.end)
        self._members.clear()

    def _in_service(self) -> list[Member]:
        return [member for member in self._members if member.state in IN_SERVICE]

    def _adjust(self) -> None:
        """Spawn what is missing."""
        for _ in range(self.size - len(self._in_service())):
            worker_id = f"{self.kind}-{self._num_spawned}"
            self._num_spawned += 1
            member = Member(worker_id, number=self._num_spawned - 1)
            self._members.append(member)
            self._keep(self._live(member), f"life of {worker_id}")

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> None:
        def look_at(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and isinstance(error := task.exception(), Exception):
                self._failure = error  # nobody else would ever see it
                self._keep(self._announce(), "tell of a failure")

        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(look_at)

    async def _live(self, member: Member) -> None:
        """One member from its birth on, until it is DEAD."""
        num_others = partial(self._num_others, member)
        life = MemberLife(member, self.hooks, self.patience, self._tell, num_others)
        try:
            await life.begin()
        except Exception as error:  # noqa: BLE001 - whatever a user's model or reward raises ends this start only
            await self._fail_to_start(member, error)
            return
        self._num_failed_starts = 0
        if self._failure is not None and not self._losses.are_hopeless:
            self._failure = None  # what no other could do, this one has done
            self._adjust()
        while not member.health.is_dead:
            try:
                if (reason := await life.beat()) is not None:
                    await self._lose(member, reason)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, another one takes its place
                await self._lose(member, f"died: {told(error)}")

    async def _fail_to_start(self, member: Member, error: Exception) -> None:
        if member.health.is_dead:  # it was told to leave before it had begun
            return
        await self._end(member)
        self._num_failed_starts += 1
        # Only a lost actor is worth another try at once: a missing model or a wrong option stays missing or wrong.
        if isinstance(error, RayActorError | WorkerLostError) and self._num_failed_starts < MAX_FAILED_STARTS:
            self.hooks.note(f"{member.worker_id} died while starting: {told(error)}; starting another")
        elif num_others := self._num_others(member):
            wait_s = self.patience.retry_start_s
            self.hooks.note(
                f"{member.worker_id} could not start: {told(error)}; {num_others} others go on, "
                f"another try in {wait_s:g} s"
            )
            await asyncio.sleep(wait_s)
        else:
            self._failure = start_error(self.kind, member.worker_id, error)
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
            self._turns.serve(lambda: self._take(self.max_calls))

    def _num_others(self, member: Member) -> int:
        """Other members that have started, because of which a start that fails is not the end: even when none is
        READY at this moment. None before the pool was complete."""
        others = [other for other in self._members if other is not member and other.state in STARTED]
        return len(others) if self._was_complete else 0

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _lose(self, member: Member, reason: str, *, in_call: bool = False) -> None:
        if member.health.is_dead:
            return
        in_service = member.state in IN_SERVICE
        self._num_lost += 1
        if in_call:
            self._losses.lost(member.number, self._num_spawned)
        next_one = "starting another in its place" if in_service else "it was leaving"
        self.hooks.note(f"{member.worker_id} {reason}; {next_one}")
        await self._end(member)
        if self._losses.are_hopeless:
            self._failure = RunError(
                f"{self._losses.num_in_a_row} {self.kind} workers in a row were lost before they had answered one "
                f"call; the last one, {member.worker_id}, {reason}"
            )
            await self._announce()
        elif pause_s := self._losses.pause_s if in_call else 0.0:
            self._keep(self._adjust_later(pause_s), f"successor of {member.worker_id}")
        else:
            self._adjust()

    async def _adjust_later(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        self._adjust()

    async def _end_if_drained(self, member: Member) -> None:
        if member.state is HealthState.DRAINING and member.num_calls == 0:
            await self._end(member)

    async def _end(self, member: Member) -> None:
        self._members.remove(member)
        member.die(self.hooks.end)
        await self._tell(member)

    async def _tell(self, member: Member) -> None:
        await self._announce()
        await self.hooks.on_change(member.worker_id, member.state)

    async def _announce(self) -> None:
        """Something has changed that `start` or a call may wait for."""
        self._hand_out()
        async with self._changed:
            self._changed.notify_all()
