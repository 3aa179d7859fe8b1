"""Ctrl-C and SIGTERM: before a run they end the launcher, during it they end the run in good order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Handles both signals while it is entered, and remembers which one came last. For the main thread.

    Outside `calling` a signal raises SystemExit where the main thread is, so that everything that was
    started is ended on the way out. Plain handlers and not those of the event loop: they hold from
    before the loop is there until after it has gone.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        """128 + the signal's number, as shells have it; 0 while none has come."""
        self._tell_run: Callable[[], object] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @contextmanager
    def calling(self, stop: Callable[[], None]) -> Iterator[None]:
        """Meanwhile a signal calls `stop` in the event loop that is running here."""
        loop = asyncio.get_running_loop()
        self._install()  # again: Ray has put a handler of its own in place of ours
        self._tell_run = lambda: loop.call_soon_threadsafe(stop)
        try:
            yield
        finally:
            self._tell_run = None

    def __enter__(self) -> Self:
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}
        self._install()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # While it starts, Ray has a handler of its own in place of ours, which exits with the signal's bare number.
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None

    def _install(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        if self._tell_run is None:
            raise SystemExit(self.exit_code)
        self._tell_run()
