"""Calls that wait for a free worker: first come, first served, and each is woken for its own turn only.

wait ─► [ turns ] ─► serve(take): as long as `take` has a worker, the first turn gets it
                 ─► end: every turn is told that there will be none
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Taken = TypeVar("Taken")


class Turns(Generic[Taken]):
    """A queue of those who wait for something that others give back."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[Taken | None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> asyncio.Future[Taken | None]:
        """A turn, to be awaited; its result is what was taken, or None after `end`. Cancelling it leaves the queue."""
        turn: asyncio.Future[Taken | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        return turn

    def serve(self, take: Callable[[], Taken | None]) -> None:
        """Give out what `take` has, until it has nothing (None) or nobody waits."""
        while self._drop_cancelled():
            taken = take()
            if taken is None:
                return
            self._waiting.popleft().set_result(taken)

    def end(self) -> None:
        """Tell all that wait now that nothing will come."""
        while self._drop_cancelled():
            self._waiting.popleft().set_result(None)

    def _drop_cancelled(self) -> bool:
        """Whether anybody waits."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        return bool(self._waiting)
