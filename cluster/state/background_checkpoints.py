"""The checkpoints of a run, written beside its steps.

    after a step ─► is one due? ─► the one before is written ─► the ranks copy what they hold ─► the next step
                                                                    └─► Checkpoints.write, in a task of its own

A step waits for the copying only, unless the disk is so slow that the one before is still being written: one at a time,
so that no more than one copy of the learner is in host memory. The end of a run waits for what is being written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cluster.learning import LearnerGroup
from cluster.pools.cancellation import end_tasks
from cluster.state.checkpoints import Checkpoints
from cluster.state.run_state import RunState
from configs.errors import CheckpointError
from configs.schema import CheckpointConfig

_LONGEST_PAUSE_S: Final = 60.0
"""Between one that failed and the next try: ten steps of a small model are over before somebody has cleared a disk."""


@dataclass(slots=True)
class BackgroundCheckpoints:
    """Writes checkpoints of a run, now and then. `note(text)` tells the user of one that failed; `on_end(is_written)`
    hears of each."""

    checkpoints: Checkpoints
    config: CheckpointConfig
    note: Callable[[str], None]
    on_end: Callable[[bool], None]
    num_failed: int = 0
    _failed_in_a_row: list[CheckpointError] = field(default_factory=list, init=False)
    _is_due: bool = field(default=False, init=False)
    """Since the last one was to be written: because of the step, or because it failed."""
    _not_before_s: float = field(default=0.0, init=False)
    """By the monotonic clock; of the next try after one that failed."""
    _writing: asyncio.Task[None] | None = field(default=None, init=False)

    async def after_step(self, learner: LearnerGroup, state: RunState, on_begin: Callable[[], None]) -> None:
        """Begin a checkpoint of `state`, at which the learner is, if one is due; on_begin: called before, if so.

        One that fails is a note, and tried again after the next step, then after pauses of 1, 2, 4, … 60 s. Raises
        CheckpointError when `max_failures` in a row have failed, and what else has ended the writing of the one before.
        """
        if self._writing is not None and self._writing.done():
            await self.settle()
        if (num_failed := len(self._failed_in_a_row)) >= self.config.max_failures:
            last = self._failed_in_a_row[-1]
            raise CheckpointError(f"{num_failed} checkpoints in a row failed (checkpoint.max_failures): {last}")
        self._is_due |= state.step % self.config.every_steps == 0
        if not self._is_due or time.monotonic() < self._not_before_s:
            return
        on_begin()
        await self.settle()
        self._is_due = False
        try:
            await learner.take_snapshot(state.step)
        except CheckpointError as error:
            self._failed(state, error)
        else:
            self._writing = asyncio.create_task(self._write(learner, state), name=f"checkpoint {state.step}")

    async def settle(self) -> None:
        """Wait for the one that is being written. Raises LearnerLostError; that it cannot be written is a note."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                await writing
            finally:
                await end_tasks({writing})

    async def save(self, learner: LearnerGroup, state: RunState) -> Path:
        """Write the last one of a run, unless it is there, and return its folder. Raises CheckpointError."""
        await self.settle()
        folder = self.checkpoints.path_of(state)
        if not folder.exists():
            await learner.take_snapshot(state.step)
            await self.checkpoints.write(learner, state)
            self.on_end(True)
        return folder

    async def close(self, *, wait: bool) -> None:
        """Wait for what is being written, or give it up, as one has to when its learner is lost."""
        if wait:
            await self.settle()
        if self._writing is not None:
            await end_tasks({self._writing})
            self._writing = None

    async def _write(self, learner: LearnerGroup, state: RunState) -> None:
        try:
            await self.checkpoints.write(learner, state)
        except CheckpointError as error:
            self._failed(state, error)
        else:
            self._failed_in_a_row.clear()
            self._not_before_s = 0.0
            self.on_end(True)

    def _failed(self, state: RunState, error: CheckpointError) -> None:
        self._is_due = True
        self.num_failed += 1
        self._failed_in_a_row.append(error)
        when = "after the next step"
        if (num_repeated := len(self._failed_in_a_row) - 1) > 0:
            pause_s = min(2.0 ** (num_repeated - 1), _LONGEST_PAUSE_S)
            self._not_before_s = time.monotonic() + pause_s
            when = f"after a step in {pause_s:g} s"
        self.on_end(False)
        self.note(f"no checkpoint of step {state.step}, tried again {when}: {error}")
