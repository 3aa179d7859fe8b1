"""Ending tasks for certain.

A cancellation may be lost on its way: the task is just leaving a place that swallows it, such as Python 3.11's
`asyncio.wait_for` when the result comes at the same moment. It then goes on as if nothing had been said, and who waits
for its end waits for ever. So it is said again, until it is heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, TypeVar

Made = TypeVar("Made")
Result = TypeVar("Result")
CANCEL_AGAIN_S: Final = 1.0
"""For a task to end, before it is cancelled once more."""


async def end_tasks(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel tasks, and return when all have ended; what they raise is dropped.

    Their own clean-up must not take long, as it is cancelled, too, after `CANCEL_AGAIN_S`.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain of an error that nobody saw


async def made_in_thread(make: Callable[[], Made], end: Callable[[Made], None]) -> Made:
    """What `make` returns, which is called in a thread, because it may block. A thread cannot be cancelled: where this
    is, what it makes is given to `end` when it is there."""
    making = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(lambda made: None if made.cancelled() or made.exception() else end(made.result()))
        raise


async def unless_set(event: asyncio.Event, work: Awaitable[Result], timeout_s: float | None = None) -> Result | None:
    """What `work` returns; None when `event` is set before. Raises TimeoutError."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if event.is_set():
            return None
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        await end_tasks((task, waiting))  # left behind, it would report the run's end as an error of its own
