"""News for a server that may be late: told at once while it answers, and kept in order while it does not.

    tell(news) ─► the server answers ─► done
                       └─ it does not ─► [ waiting ] ─► sent again, with pauses ─► caught up
                                             └─ for patience_s, or too many ─► `error`

A registry only watches a run, so the run goes on meanwhile. All news may be sent twice: a command may have been
carried out though its answer was lost.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cluster.pools.cancellation import end_tasks
from configs.errors import BicotError, RegistryError

MAX_WAITING: Final = 200_000
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0

Result = TypeVar("Result")
News = Callable[[], Awaitable[Result]]
"""Sends something, and may be called again."""


@dataclass(slots=True)
class Outbox:
    """`note(text)` tells the user when the server is missed, and when it is back."""

    patience_s: float
    note: Callable[[str], None]
    error: BicotError | None = field(default=None, init=False)
    """What ended the patience; nothing is told any more."""
    _waiting: deque[News[Any]] = field(default_factory=deque, init=False)
    _sender: asyncio.Task[None] | None = field(default=None, init=False)
    _heard_s: float = field(default=0.0, init=False)
    """When the server last answered, since it was missed; monotonic."""

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def tell(self, news: News[Any]) -> None:
        """Send news, now or when what waits before it is sent. Raises what the server has against it, when it is
        sent at once."""
        if self.error is not None:
            return
        if not self._waiting:
            try:
                await news()
                return
            except RegistryError as error:
                self._miss(error)
        self._waiting.append(news)
        if len(self._waiting) > MAX_WAITING:
            self._give_up(RegistryError(f"the run's registry is behind by {len(self._waiting)} messages"))
        elif self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send(), name="tell the registry")

    async def insist(self, news: News[Result]) -> Result:
        """Send news that makes all that waits obsolete; returns its answer. Raises RegistryError after the patience."""
        await self.close()
        self._waiting.clear()
        self._heard_s = time.monotonic()
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await news()
            except RegistryError:
                if time.monotonic() - self._heard_s > self.patience_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def flush(self, timeout_s: float) -> None:
        """Wait until all is sent, or for so long."""
        if self._sender is not None:
            await asyncio.wait({self._sender}, timeout=timeout_s)

    async def close(self) -> None:
        """Send nothing more by itself."""
        if self._sender is not None:
            await end_tasks({self._sender})

    async def _send(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._waiting:
            try:
                await self._waiting[0]()
            except RegistryError as error:
                if time.monotonic() - self._heard_s > self.patience_s:
                    self._give_up(error)
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except BicotError as error:
                self._give_up(error)
            else:
                self._waiting.popleft()
                self._heard_s, pause_s = time.monotonic(), FIRST_PAUSE_S
        if self.error is None:
            self.note("the run's registry answers again, and has been told what it missed")

    def _miss(self, error: RegistryError) -> None:
        if not self._waiting:
            self._heard_s = time.monotonic()
            self.note(
                f"{error}; training goes on, and it is told later (for registry.patience_s {self.patience_s:g} s)"
            )

    def _give_up(self, error: BicotError) -> None:
        self.error = error
        self._waiting.clear()
