"""Admission: which groups may be dispatched, so that no trajectory is ever too stale.

Groups are numbered by `sequence`, and group `sequence` is trained on in optimizer step
`sequence // groups_per_step`, always: the learner consumes groups in the order in which they were
admitted, so what a step trains on does not depend on timing. A group may start as soon as

    sequence < (version + max_staleness + 1) * groups_per_step

where `version` is the weight version that the rollout workers hold. A group of step k therefore
starts at version k - max_staleness or later, and its staleness when trained on is at most
`max_staleness`. Equally, at most `(max_staleness + 1) * groups_per_step` groups are in flight or
queued. `max_staleness: 0` is synchronous training.

    Pipeline._produce ─► admit(sequence)  waits for ─► advance(version)  called after a weight sync
"""

from __future__ import annotations

import asyncio


class Admission:
    """Lets groups through in order of `sequence`, as the weight version advances."""

    def __init__(self, groups_per_step: int, max_staleness: int, version: int = 0) -> None:
        if groups_per_step < 1 or max_staleness < 0 or version < 0:
            raise ValueError(
                f"groups_per_step {groups_per_step} must be 1 or more, "
                f"max_staleness {max_staleness} and version {version} 0 or more"
            )
        self._groups_per_step = groups_per_step
        self._max_staleness = max_staleness
        self._version = version
        self._advanced = asyncio.Condition()

    @property
    def limit(self) -> int:
        """First `sequence` that may not start yet."""
        return (self._version + self._max_staleness + 1) * self._groups_per_step

    async def admit(self, sequence: int) -> None:
        """Wait until group `sequence` may start."""
        async with self._advanced:
            await self._advanced.wait_for(lambda: sequence < self.limit)

    async def advance(self, version: int) -> None:
        """Tell that every rollout worker holds `version`; it never goes back."""
        if version < self._version:
            raise ValueError(f"weight version went back from {self._version} to {version}")
        async with self._advanced:
            self._version = version
            self._advanced.notify_all()
