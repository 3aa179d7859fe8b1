"""Stages that block, in a thread, and the pools that they use, in the event loop.

thread: run_benchmark's stages ─► Bridge.wait(coroutine) ─► loop: pools ─► result, or what it raised
loop:   told to stop ─► Bridge.close ─► whoever waits gets Stopped, and so does who asks later
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class StoppedError(Exception):
    """The evaluation was told to stop."""


class Bridge:
    """From threads to the event loop that it is made in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running: set[Future[Any]] = set()
        self._is_closed = False

    def begin(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run it in the loop. Raises StoppedError."""
        if self._is_closed:
            work.close()
            raise StoppedError
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Its result. Raises StoppedError, and what it raises."""
        return result_of(self.begin(work))

    def close(self) -> None:
        """Cancel what runs, and take nothing more."""
        self._is_closed = True
        for future in tuple(self._running):
            future.cancel()


def result_of(future: Future[Result]) -> Result:
    """What has come of it. Raises StoppedError where it was cancelled, and what it raised."""
    try:
        return future.result()
    except CancelledError:
        raise StoppedError from None
