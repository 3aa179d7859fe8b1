"""Which replicas of a reward fail at what others can do: those are to be taken out.

    one fails pictures, another scores the same ones, 3 times without a success between    ─► out: it is the replica
    the only one fails 8 calls in a row, after it had scored some                          ─► out, once
    all fail the same pictures                                                             ─► nobody: it is the pictures

Pure bookkeeping over the replicas' ids.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

MAX_REFUTED: Final = 3
"""Failures in a row of one replica that another one has refuted."""
MAX_ALONE: Final = 8
"""Failures in a row of a replica that nobody can refute."""


@dataclass(slots=True)
class Trust:
    """In the replicas of one reward."""

    _has_scored: set[str] = field(default_factory=set)
    _refuted: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _failed: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def succeeded(self, worker_id: str, after: Collection[str]) -> list[str]:
        """A replica has scored a picture, at which those of `after` had failed; returns which of these have to go."""
        self._has_scored.add(worker_id)
        self._refuted.pop(worker_id, None)
        self._failed.pop(worker_id, None)
        for other in after:
            self._refuted[other] += 1
        return [other for other in after if self._refuted[other] >= MAX_REFUTED]

    def failed(self, worker_id: str, *, is_alone: bool) -> bool:
        """A replica has scored none of the pictures of a call; returns whether it has to go."""
        self._failed[worker_id] += 1
        return is_alone and worker_id in self._has_scored and self._failed[worker_id] >= MAX_ALONE
