"""Pictures that wait for their scores, in the order of their arrival."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.calling import Answer
from rollout.records import Prompt, UInt8Array


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """One picture that waits for its score."""

    picture: UInt8Array
    prompt: Prompt
    plan: str | None
    group: object
    """The same of all pictures of one call of `RewardWorker.score`."""
    arrived_s: float
    """Clock of the event loop."""
    answer: asyncio.Future[Answer]


class PendingPictures:
    """For one event loop. Pictures whose calls were given up are forgotten."""

    def __init__(self) -> None:
        self._calls: list[Pending] = []

    def add(self, calls: Sequence[Pending]) -> None:
        self._calls.extend(calls)

    def next_batch(self, batch_size: int) -> list[Pending]:
        """The oldest picture, and what came after it of its size: at most batch_size. They go on waiting."""
        self._forget()
        if not self._calls:
            return []
        oldest = self._calls[0]
        return [call for call in self._calls if call.picture.shape == oldest.picture.shape][:batch_size]

    def next_group(self) -> list[Pending]:
        """The oldest picture and all others of its call. They go on waiting."""
        self._forget()
        return [call for call in self._calls if call.group is self._calls[0].group]

    def take(self, batch: Sequence[Pending]) -> None:
        """These wait no more."""
        taken = set(map(id, batch))
        self._calls = [call for call in self._calls if id(call) not in taken]

    def _forget(self) -> None:
        self._calls = [call for call in self._calls if not call.answer.done()]
