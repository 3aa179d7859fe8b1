"""The bounded trajectory queue between the reward pool and the learner.

    Pipeline ─► put(group) ─► [ at most max_groups ] ─► get_batch(step) ─► learner ranks

`get_batch(k)` hands out exactly the groups of optimizer step k, ordered by `sequence`. Of the
`max_groups` places, `groups_per_step` are kept for the step that the learner needs next, so that
early groups of a later step can never lock out a late group of this one.

A plain class; `cluster.actors.queue` runs it as an asyncio Ray actor.
"""

from __future__ import annotations

import asyncio

from rollout.records import ScoredGroup, TrajectoryBatch


class TrajectoryQueue:
    """Holds scored groups until their step is asked for. Group `sequence` belongs to step
    `sequence // groups_per_step`."""

    def __init__(self, max_groups: int, groups_per_step: int, first_step: int = 0) -> None:
        if max_groups < groups_per_step:
            raise ValueError(f"max_groups {max_groups} cannot hold one batch of {groups_per_step} groups")
        self._max_groups = max_groups
        self._groups_per_step = groups_per_step
        self._next_step = first_step
        self._groups: dict[int, ScoredGroup] = {}
        self._changed = asyncio.Condition()

    def num_queued(self) -> int:
        return len(self._groups)

    async def put(self, group: ScoredGroup) -> bool:
        """Add a group, waiting for room. False, and nothing is added, when its `sequence` is already
        here or already consumed: a group that was rolled twice is trained on once."""
        sequence = group.rollout.request.sequence
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_repeated(sequence) or self._has_room(sequence))
            if self._is_repeated(sequence):
                return False
            self._groups[sequence] = group
            self._changed.notify_all()
            return True

    async def get_batch(self, step: int) -> TrajectoryBatch:
        """Remove and return the groups of `step`, waiting until all are here. Steps are asked for in order."""
        if step != self._next_step:
            raise ValueError(f"step {step} was asked for, but the next one is {self._next_step}")
        wanted = range(step * self._groups_per_step, (step + 1) * self._groups_per_step)
        async with self._changed:
            await self._changed.wait_for(lambda: all(sequence in self._groups for sequence in wanted))
            batch = TrajectoryBatch(step=step, groups=tuple(self._groups.pop(sequence) for sequence in wanted))
            self._next_step = step + 1
            self._changed.notify_all()
        return batch

    def _step_of(self, sequence: int) -> int:
        return sequence // self._groups_per_step

    def _is_repeated(self, sequence: int) -> bool:
        return sequence in self._groups or self._step_of(sequence) < self._next_step

    def _has_room(self, sequence: int) -> bool:
        if self._step_of(sequence) == self._next_step:
            return True
        num_later = sum(self._step_of(queued) > self._next_step for queued in self._groups)
        return num_later < self._max_groups - self._groups_per_step
