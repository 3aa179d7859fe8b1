"""What one worker of a pool goes through by itself: it starts, catches up with the weights, and is listened to.

    begin: JOINING ─ spawned ─ has its place: says on which node ─ start ─► STALE ─ catch up ─► READY
    beat:  READY ─ said nothing lately ─► asked ─ an answer ─► READY
                                            └ none for heartbeat_s ─► SUSPECT ─ an answer ─► READY, or STALE ─ catch up
                                                                         └ none for heartbeat_timeout_s ─► beat says so

`cluster.pools.pool` decides what follows from it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from cluster.pools.cancellation import end_tasks, made_in_thread
from cluster.pools.health import HealthState
from cluster.pools.member import LateWeightsError, LostWeightsError, Member, Patience, PoolHooks
from cluster.pools.remote_errors import first_line, resolve
from configs.errors import RunError

MAX_LATE: Final = 5
"""Times in a row that a worker which answers its heartbeats may be late with the same weights."""


@dataclass(slots=True)
class MemberLife:
    """`tell(member)` hears of each new state; `num_others()`: other members that have started, 0 while the
    pool has never been complete."""

    member: Member
    hooks: PoolHooks
    patience: Patience
    tell: Callable[[Member], Awaitable[None]]
    num_others: Callable[[], int]
    _arrived_s: float | None = field(default=None, init=False)
    """When it was found to have its place in the cluster; monotonic."""

    async def begin(self) -> None:
        """Bring it to READY; it may wait for its place in the cluster for as long as others do the work.

        Raises RunError when it takes longer than `Patience.start_s` and has its place, or there are no others, and
        whatever its start or its weights raise.
        """
        member = self.member
        spawning = asyncio.create_task(self._spawn())  # its turn is that of its birth, however long telling takes
        try:
            await self.tell(member)
            await spawning
        finally:
            await end_tasks({spawning})
        async with self.hooks.loading():
            await self._load()

    async def _load(self) -> None:
        member = self.member
        # Asked first, it is answered when the worker has its place and before it starts.
        arrive = asyncio.create_task(self._arrive(member.handle.ping.remote()))
        start = asyncio.ensure_future(self.hooks.start(member.handle))
        try:
            while not (await asyncio.wait({start}, timeout=self.patience.start_s))[0]:
                self._complain()
            start.result()
        finally:
            start.cancel()
            await end_tasks({arrive})
        member.health.started()
        await self.tell(member)
        await self._catch_up()

    async def _spawn(self) -> None:
        """One at a time, in the order of their births: see `PoolHooks.spawning`. Raises RunError when it was ended
        meanwhile."""
        member = self.member
        async with self.hooks.spawning:
            if not member.health.is_dead:
                member.handle = await made_in_thread(partial(self.hooks.spawn, member.worker_id), self.hooks.end)
        if member.health.is_dead:
            member.die(self.hooks.end)
            raise RunError(f"{member.worker_id} was ended before it had begun")

    async def beat(self) -> str | None:
        """One heartbeat, when it is needed. What is wrong when it is not answered at all, else None.

        Raises what waiting for an actor raises, when it is dead.
        """
        member, patience = self.member, self.patience
        await self._until_quiet()
        answer = asyncio.ensure_future(resolve(member.handle.ping.remote()))
        try:
            if not (await asyncio.wait({answer}, timeout=patience.heartbeat_s))[0]:
                member.health.missed()
                await self.tell(member)
                await asyncio.wait({answer}, timeout=patience.heartbeat_timeout_s - patience.heartbeat_s)
            if not answer.done():
                return f"was silent for {patience.heartbeat_timeout_s:g} s"
            member.node_id = answer.result()
            member.hear()
        finally:
            answer.cancel()
        if member.state is HealthState.SUSPECT:
            member.health.answered(self.hooks.weights.version)
            await self.tell(member)
        if member.state is HealthState.STALE:
            async with self.hooks.loading():
                await self._catch_up()
        return None

    async def _until_quiet(self) -> None:
        """Return when the worker has to be asked; before its first answer, which says where it is, at once."""
        while self.member.node_id:
            if (rest_s := self._rest_s()) > 0:
                await asyncio.sleep(rest_s)
                continue
            now_s = time.monotonic()
            await asyncio.sleep(self.patience.pace.take_turn(now_s) - now_s)
            if self._rest_s() <= 0:
                return

    def _rest_s(self) -> float:
        """Until it has said nothing for a heartbeat; 0 or less when that is so."""
        return self.member.heard_s + self.patience.heartbeat_s - time.monotonic()

    async def _arrive(self, node_id: Any) -> None:
        self.member.node_id = await resolve(node_id)
        self._arrived_s = time.monotonic()

    async def _catch_up(self) -> None:
        num_late = 0
        while self.member.state is HealthState.STALE:
            try:
                held = await self.hooks.weights.catch_up(self.member.handle)
            except LostWeightsError:
                return  # it asks again after its next heartbeat: the learner may need its turn before
            except LateWeightsError as error:
                num_late += 1
                if num_late == MAX_LATE or not await self._answers():
                    raise
                self.hooks.note(f"{self.member.worker_id} is late: {first_line(error)}; it is waited for")
                continue
            # No await between the look at the live version and READY: what it holds is still the newest.
            self.member.health.holds(held, self.hooks.weights.version)
            self.member.hear()
        await self.tell(self.member)

    async def _answers(self) -> bool:
        """Whether it answers a ping in time."""
        try:
            async with asyncio.timeout(self.patience.heartbeat_timeout_s):
                await resolve(self.member.handle.ping.remote())
        except TimeoutError:
            return False
        return True

    def _complain(self) -> None:
        waited = f"{self.member.worker_id} has not started within {self.patience.start_s:g} s"
        if self._arrived_s is not None and time.monotonic() - self._arrived_s >= self.patience.start_s:
            raise RunError(f"{waited}, though it has its place in the cluster: it hangs; what do Ray's logs say of it?")
        if not (num_others := self.num_others()):
            raise RunError(f"{waited}; has the cluster room for it, and what do Ray's logs say of it?")
        if self._arrived_s is None:
            self.hooks.note(f"{waited}: it waits for room in the cluster; {num_others} others go on")
