"""What one worker of a pool goes through by itself: it starts, catches up with the weights, and is listened to.

    begin: JOINING ─ start ─► STALE ─ catch up ─► READY
    beat:  READY ─ no answer for heartbeat_s ─► SUSPECT ─ an answer ─► READY, or STALE ─ catch up ─► READY
                                                        └ none for heartbeat_timeout_s ─► beat says so

`cluster.pool` decides what follows from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cluster.health import HealthState
from cluster.pool_member import Member, Patience, PoolHooks
from cluster.remote_errors import resolve
from configs.errors import RunError


@dataclass(frozen=True, slots=True)
class MemberLife:
    """`tell(member)` hears of each new state; `num_others()`: members that do the work meanwhile, 0 while the
    pool has never been complete."""

    member: Member
    hooks: PoolHooks
    patience: Patience
    tell: Callable[[Member], Awaitable[None]]
    num_others: Callable[[], int]

    async def begin(self) -> None:
        """Bring it to READY; for as long as it takes, while others do the work.

        Raises RunError when it takes longer than `Patience.start_s` and there are no others, and whatever its
        start or its weights raise.
        """
        member = self.member
        await self.tell(member)
        start = asyncio.ensure_future(self.hooks.start(member.handle))
        try:
            while not (await asyncio.wait({start}, timeout=self.patience.start_s))[0]:
                self._complain()
            start.result()
        finally:
            start.cancel()
        member.health.started()
        await self.tell(member)
        await self._catch_up()

    async def beat(self) -> str | None:
        """One heartbeat. What is wrong when it is not answered at all, else None after a pause.

        Raises what waiting for an actor raises, when it is dead.
        """
        member, patience = self.member, self.patience
        answer = asyncio.ensure_future(resolve(member.handle.ping.remote()))
        try:
            if not (await asyncio.wait({answer}, timeout=patience.heartbeat_s))[0]:
                member.health.missed()
                await self.tell(member)
                await asyncio.wait({answer}, timeout=patience.heartbeat_timeout_s - patience.heartbeat_s)
            if not answer.done():
                return f"was silent for {patience.heartbeat_timeout_s:g} s"
            member.node_id = answer.result()
        finally:
            answer.cancel()
        if member.state is HealthState.SUSPECT:
            member.health.answered(self.hooks.weights.version)
            await self._catch_up()
        await asyncio.sleep(patience.heartbeat_s)
        return None

    async def _catch_up(self) -> None:
        while self.member.state is HealthState.STALE:
            held = await self.hooks.weights.catch_up(self.member.handle)
            # No await between the look at the live version and READY: what it holds is still the newest.
            self.member.health.holds(held, self.hooks.weights.version)
        await self.tell(self.member)

    def _complain(self) -> None:
        waited = f"{self.member.worker_id} has not started within {self.patience.start_s:g} s"
        if not (num_others := self.num_others()):
            raise RunError(f"{waited}; has the cluster room for it, and what do Ray's logs say of it?")
        self.hooks.note(f"{waited}: it waits for room in the cluster, or hangs; {num_others} others go on")
