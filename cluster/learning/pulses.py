"""Whether the learner's ranks live, asked beside what they compute.

    pulse every heartbeat_s, answered by a thread of its own ─► none for heartbeat_timeout_s: the rank is frozen, or
                                                                its node is cut off
    duration of the last steps ─► STEP_FACTOR times their median: the ranks live, but wait for each other for ever

The first answer of a rank is waited for without a bound: its process may still be starting, and whoever waits for
that has a bound of their own.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ray.actor import ActorHandle

from cluster.actors.learner import Stage
from cluster.pools.cancellation import end_tasks
from cluster.pools.remote_errors import resolve

STEP_FACTOR: Final = 5.0
NUM_MEASURED_STEPS: Final = 20
MIN_MEASURED_STEPS: Final = 3


class SilentRankError(Exception):
    """A rank answers no pulse, or its work makes no progress; the message says which and for how long."""


@dataclass(slots=True)
class Pulses:
    """Of the ranks of one learner group. `on_stage(stage)` hears how far rank 0's long work is, when it has come
    further."""

    ranks: Sequence[ActorHandle]
    heartbeat_s: float
    heartbeat_timeout_s: float
    _answered: set[int] = field(default_factory=set, init=False)
    """Ranks that have answered once."""

    def all_answered(self) -> None:
        """Every rank has answered something."""
        self._answered.update(range(len(self.ranks)))

    async def watch(self, on_stage: Callable[[Stage], None] | None = None, stall_s: float | None = None) -> None:
        """Return never. Raises SilentRankError, and what waiting for a dead actor raises.

        stall_s: for rank 0's stage to get on, before it counts as stuck.
        """
        last: Stage | None = None
        moved_s = time.monotonic()
        while True:
            stage = await self.ask()
            if stage is not None and stage != last:
                last, moved_s = stage, time.monotonic()
                if on_stage is not None:
                    on_stage(stage)
            if stall_s is not None and time.monotonic() - moved_s > stall_s:
                where = "has not begun" if last is None else f"stands at {last.name} {last.done}/{last.total}"
                raise SilentRankError(f"it {where} for {stall_s:g} s")
            await asyncio.sleep(self.heartbeat_s)

    async def ask(self) -> Stage | None:
        """One pulse of each rank; returns rank 0's stage. Raises as `watch` does."""
        answers = {
            asyncio.ensure_future(resolve(handle.pulse.options(concurrency_group="pulse").remote())): rank
            for rank, handle in enumerate(self.ranks)
        }
        first = next(iter(answers), None)
        try:
            known = {answer for answer, rank in answers.items() if rank in self._answered}
            if known:
                done, _ = await asyncio.wait(known, timeout=self.heartbeat_timeout_s)
                if silent := sorted(answers[answer] for answer in known - done):
                    raise SilentRankError(f"rank {silent[0]} was silent for {self.heartbeat_timeout_s:g} s")
            await asyncio.gather(*answers)
            self._answered.update(answers.values())
            return None if first is None else first.result()
        finally:
            await end_tasks(answers.keys())


@dataclass(slots=True)
class StepTimes:
    """How long the last optimizer steps took, in seconds."""

    _durations: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_MEASURED_STEPS), init=False)

    def add(self, duration_s: float) -> None:
        self._durations.append(duration_s)

    def bound_s(self, at_least_s: float, at_most_s: float) -> float:
        """For the next step: a few times the median, once there are steps to know it by."""
        if len(self._durations) < MIN_MEASURED_STEPS:
            return at_most_s
        return min(at_most_s, max(at_least_s, STEP_FACTOR * statistics.median(self._durations)))
