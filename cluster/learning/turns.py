"""Engines and learner take turns on the same GPUs (`rollout.colocate`): whose turn it is, and how it changes.

                offload the learner, wake the engines
     LEARNING ─────────────── TO_DRAWING ───────────────► DRAWING
        ▲                                                    │
        └─────────────────── TO_LEARNING ────────────────────┘   any ── the learner is lost ──► TO_LEARNING
        no engine loads any more; engines sleep, reload the learner (not in place of one that is lost)

It begins as the learner's, which loads its weights first. While DRAWING, engines hold weights and KV cache, and of the
learner its weights and the reference are left on the GPU, so that new weights can be sent; while LEARNING, the engines
sleep. An engine starts, or catches up with the weights, while DRAWING only: the learner's turn waits for its end. All
that a change consists of may be done again, so one that breaks off half-way is mended by the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from cluster.pools import ActorPool
from cluster.pools.member import Member
from cluster.pools.remote_errors import WorkerLostError, first_line
from configs.errors import BicotError
from configs.schema import RunConfig


class Turn(StrEnum):
    """Who has the GPUs."""

    LEARNING = "learning"
    TO_DRAWING = "to_drawing"
    DRAWING = "drawing"
    TO_LEARNING = "to_learning"


_T = Turn

TRANSITIONS: Final[Mapping[Turn, frozenset[Turn]]] = {
    _T.LEARNING: frozenset({_T.TO_DRAWING, _T.TO_LEARNING}),
    _T.TO_DRAWING: frozenset({_T.DRAWING, _T.TO_LEARNING}),
    _T.DRAWING: frozenset({_T.TO_LEARNING}),
    _T.TO_LEARNING: frozenset({_T.LEARNING, _T.TO_LEARNING}),
}
"""Every step that is possible; `GpuTurns` makes no other. To TO_LEARNING, but from DRAWING, for a lost learner only."""


class Engines(Protocol):
    """Those of all rollout workers. Both may be called again, and raise nothing for a worker: it is replaced."""

    async def sleep(self) -> None:
        """When this returns, each has given up its memory, or is ended."""

    async def wake(self) -> None:
        """When this returns, each has it back, or is ended."""


class Learner(Protocol):
    """Raises LearnerError. Both may be called again."""

    async def offload(self) -> None:
        """Move the optimizer's state into host memory."""

    async def reload(self) -> None:
        """Bring it back."""


class Turns(Protocol):
    """Who computes when."""

    def learning(self) -> Any:
        """Async context in which the learner may make a step; engines draw again when it has ended well."""

    def loading(self) -> Any:
        """Async context in which one engine may load its model, or newer weights."""

    async def begin_drawing(self) -> None:
        """A learner has loaded its weights, and engines may draw. Raises LearnerError."""

    async def learner_lost(self) -> None:
        """The learner has died, and another will load its weights."""

    def take_times(self) -> dict[str, float]:
        """Metrics since the last call, as `cluster.reports.metrics` documents them."""


class NoTurns:
    """`Turns` of engines and a learner that have GPUs of their own: both compute whenever they can."""

    @asynccontextmanager
    async def learning(self) -> AsyncIterator[None]:
        yield

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[None]:
        yield

    async def begin_drawing(self) -> None:
        return None

    async def learner_lost(self) -> None:
        return None

    def take_times(self) -> dict[str, float]:
        return {}


class GpuTurns:
    """`Turns` on GPUs that both use. A wrong order is a mistake of ours, and refused by an assertion."""

    def __init__(
        self, engines: Engines, learner: Callable[[], Learner], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """learner: the one that there is now."""
        self._engines = engines
        self._learner = learner
        self._clock = clock
        self._turn = Turn.LEARNING
        self._since_s = clock()
        self._spent_s = dict.fromkeys(Turn, 0.0)
        self._num_loading = 0
        self._may_draw, self._none_loads = asyncio.Event(), asyncio.Event()
        self._none_loads.set()

    @property
    def turn(self) -> Turn:
        return self._turn

    @asynccontextmanager
    async def learning(self) -> AsyncIterator[None]:
        """See Turns. Where the body raises, it stays the learner's turn: another one begins it, or the run ends."""
        assert self._turn is Turn.DRAWING, f"the learner cannot begin while the turn is {self._turn}"
        await self._send_to_sleep()
        await self._learner().reload()
        self._move(Turn.LEARNING)
        yield
        await self.begin_drawing()

    async def begin_drawing(self) -> None:
        self._move(Turn.TO_DRAWING)
        await self._learner().offload()
        await self._engines.wake()
        self._move(Turn.DRAWING)

    async def learner_lost(self) -> None:
        await self._send_to_sleep()
        self._move(Turn.LEARNING)

    async def _send_to_sleep(self) -> None:
        self._move(Turn.TO_LEARNING)
        await self._none_loads.wait()
        await self._engines.sleep()

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[None]:
        while self._turn is not Turn.DRAWING:
            await self._may_draw.wait()
        self._num_loading += 1  # no await since the look at the turn
        self._none_loads.clear()
        try:
            yield
        finally:
            self._num_loading -= 1
            if not self._num_loading:
                self._none_loads.set()

    def take_times(self) -> dict[str, float]:
        self._count()
        taken, self._spent_s = self._spent_s, dict.fromkeys(Turn, 0.0)
        return {f"turns/{turn}_s": spent_s for turn, spent_s in taken.items()}

    def _count(self) -> None:
        before_s, self._since_s = self._since_s, self._clock()
        self._spent_s[self._turn] += self._since_s - before_s

    def _move(self, turn: Turn) -> None:
        assert turn in TRANSITIONS[self._turn], f"no way from {self._turn} to {turn}"
        self._count()
        self._turn = turn
        if turn is Turn.DRAWING:
            self._may_draw.set()
        else:
            self._may_draw.clear()


@dataclass(frozen=True, slots=True)
class PooledEngines:
    """`Engines` of a pool of rollout workers. One that does not answer in time is ended, since it may hold memory that
    others need; the worker in its place begins when engines draw."""

    pool: ActorPool
    timeout_s: float

    async def sleep(self) -> None:
        await self._all(lambda handle: handle.sleep.remote())

    async def wake(self) -> None:
        await self._all(lambda handle: handle.wake.remote())

    async def _all(self, invoke: Callable[[Any], Any]) -> None:
        await asyncio.gather(*(self._one(member, invoke) for member in self.pool.started))

    async def _one(self, member: Member, invoke: Callable[[Any], Any]) -> None:
        try:
            with suppress(WorkerLostError):  # the pool has told of it
                await self.pool.call_member(member, invoke, self.timeout_s)
        except BicotError as error:
            await self.pool.take_out(member.worker_id, f"could not change turns with the learner: {first_line(error)}")


def make_turns(config: RunConfig, rollouts: ActorPool, learner: Callable[[], Learner]) -> Turns:
    """What `rollout.colocate` asks for; learner: the one that there is now."""
    if not config.rollout.colocate:
        return NoTurns()
    return GpuTurns(PooledEngines(rollouts, config.weight_sync.timeout_s), learner)
