"""A pool of interchangeable actors: keeps so many alive, and gives each call to the least busy one.

    call ─► least busy READY member (waits when all are full) ─► result
                     │ the actor died, or the call timed out
                     ▼
            member is ended and replaced: spawn ─► prepare ─► READY        call raises WorkerLostError

A member becomes READY only after `prepare` (which loads what a newcomer must know, such as the live
weights), and a lost member never comes back: its replacement is a new one with a new id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError

from cluster.remote_errors import first_line, raised_by
from configs.errors import BicotError, RunError

MAX_FAILED_STARTS = 3


class WorkerLostError(BicotError):
    """A worker died or hung during a call. The call may be made again; another worker answers it."""


@dataclass(slots=True, eq=False)
class Member:
    """One actor of a pool."""

    worker_id: str
    handle: ActorHandle
    num_calls: int = 0


@dataclass(frozen=True, slots=True)
class PoolHooks:
    """What a pool does not know of its actors.

    `spawn(worker_id)` makes an actor without waiting for it; `prepare(handle)` makes it ready for
    calls; `on_change(worker_id, state)` hears JOINING, READY, DEAD; `note(text)` tells the user.
    """

    spawn: Callable[[str], ActorHandle]
    prepare: Callable[[ActorHandle], Awaitable[None]]
    on_change: Callable[[str, str], Awaitable[None]]
    note: Callable[[str], None]


@dataclass(slots=True)
class ActorPool:
    """`size` actors called `KIND-0`, `KIND-1`, …; each is given at most `max_calls` calls at once."""

    kind: str
    size: int
    max_calls: int
    hooks: PoolHooks
    _ready: list[Member] = field(default_factory=list)
    _joining: dict[str, tuple[Member, asyncio.Task[None]]] = field(default_factory=dict)
    _num_spawned: int = 0
    _num_failed_starts: int = 0
    _num_lost: int = 0
    _failure: BaseException | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def num_ready(self) -> int:
        return len(self._ready)

    @property
    def num_lost(self) -> int:
        """Members that died or hung so far."""
        return self._num_lost

    @property
    def members(self) -> tuple[Member, ...]:
        """The members that are READY now."""
        return tuple(self._ready)

    async def start(self) -> None:
        """Spawn all members and wait until each is READY; the first failure to start is raised."""
        for _ in range(self.size):
            self._spawn()
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None or len(self._ready) == self.size)
        self._raise_failure()

    async def call(self, invoke: Callable[[ActorHandle], Any], timeout_s: float) -> Any:
        """Await `invoke(handle)`, an object reference, on the least busy member.

        Raises WorkerLostError when the member dies or needs more than `timeout_s`, and whatever the
        actor's method raises.
        """
        member = await self._acquire()
        try:
            return await self.call_member(member, invoke, timeout_s)
        finally:
            async with self._changed:
                member.num_calls -= 1
                self._changed.notify_all()

    async def call_member(self, member: Member, invoke: Callable[[ActorHandle], Any], timeout_s: float) -> Any:
        """The same on one given member, whether it is busy or not."""
        try:
            return await asyncio.wait_for(_resolve(invoke(member.handle)), timeout_s)
        except RayActorError as error:
            await self._lose(member, f"died: {first_line(error)}")
            raise WorkerLostError(f"{member.worker_id} died during a call") from error
        except TimeoutError as error:
            await self._lose(member, f"did not answer within {timeout_s:g} s")
            raise WorkerLostError(f"{member.worker_id} did not answer within {timeout_s:g} s") from error
        except RayTaskError as error:
            raise raised_by(error) from error

    async def close(self) -> None:
        """End every member, ready or joining."""
        joining = list(self._joining.values())
        for _, task in joining:
            task.cancel()
        await asyncio.gather(*(task for _, task in joining), return_exceptions=True)
        for member in [*self._ready, *(member for member, _ in joining)]:
            ray.kill(member.handle)
        self._ready.clear()

    def _spawn(self) -> None:
        worker_id = f"{self.kind}-{self._num_spawned}"
        self._num_spawned += 1
        member = Member(worker_id, self.hooks.spawn(worker_id))
        self._joining[worker_id] = (member, asyncio.create_task(self._join(member), name=f"join {worker_id}"))

    async def _join(self, member: Member) -> None:
        try:
            await self.hooks.on_change(member.worker_id, "JOINING")
            await self.hooks.prepare(member.handle)
        except Exception as error:  # noqa: BLE001 - whatever a user's model or reward raises ends this start only
            await self._failed_start(member, error)
        else:
            # No await between the end of `prepare` and here: what `prepare` loaded is still the newest.
            self._num_failed_starts = 0
            self._ready.append(member)
            await self.hooks.on_change(member.worker_id, "READY")
        finally:
            del self._joining[member.worker_id]
            async with self._changed:
                self._changed.notify_all()

    async def _failed_start(self, member: Member, error: Exception) -> None:
        ray.kill(member.handle)
        self._num_failed_starts += 1
        # Only a lost actor is worth another try: a missing model or a wrong option stays missing or wrong.
        if isinstance(error, RayActorError) and self._num_failed_starts < MAX_FAILED_STARTS:
            self.hooks.note(f"{member.worker_id} died while starting: {first_line(error)}; starting another")
            self._spawn()
        else:
            self._failure = error

    async def _acquire(self) -> Member:
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None or self._free_members())
            self._raise_failure()
            member = min(self._free_members(), key=lambda candidate: candidate.num_calls)
            member.num_calls += 1
            return member

    def _free_members(self) -> list[Member]:
        return [member for member in self._ready if member.num_calls < self.max_calls]

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        own = raised_by(self._failure) if isinstance(self._failure, RayTaskError) else self._failure
        if isinstance(own, BicotError):
            raise own from self._failure.__cause__
        raise RunError(f"no {self.kind} worker could be started: {first_line(self._failure)}") from self._failure

    async def _lose(self, member: Member, reason: str) -> None:
        if member not in self._ready:
            return
        self._ready.remove(member)
        self._num_lost += 1
        ray.kill(member.handle)
        self.hooks.note(f"{member.worker_id} {reason}; starting another in its place")
        await self.hooks.on_change(member.worker_id, "DEAD")
        self._spawn()


async def _resolve(reference: Any) -> Any:
    """Await an object reference.

    An actor that ends itself cancels the calls it is at, which must not look as if this task was cancelled.
    """
    try:
        return await reference
    except (RayTaskError, TaskCancelledError) as error:
        if isinstance(error, TaskCancelledError) or isinstance(raised_by(error), asyncio.CancelledError):
            raise WorkerLostError("the worker ended itself during a call") from error
        raise
