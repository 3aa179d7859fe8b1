"""An event loop that ends: also when a thread of it hangs.

`asyncio.run` waits without a bound for every thread that `asyncio.to_thread` has started, and so does the interpreter
when it ends: one download that hangs, or one file on a dead NFS, keeps a launcher alive whose run has long ended.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from cluster.session.stop_signals import block_signals

T = TypeVar("T")

PATIENCE_S: Final = 10.0
THREAD_NAME: Final = "bicot-work"


def run_bounded(coroutine: Coroutine[Any, Any, T], patience_s: float = PATIENCE_S) -> T:
    """As `asyncio.run`, but tasks and threads that are left get `patience_s` to end and are then left alone.

    See `hanging_threads` for what is to be done about the threads.
    """
    loop = asyncio.new_event_loop()
    threads = ThreadPoolExecutor(thread_name_prefix=THREAD_NAME, initializer=block_signals)
    loop.set_default_executor(threads)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(coroutine)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=patience_s))
        loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), patience_s))
        threads.shutdown(wait=False, cancel_futures=True)
        join_threads(patience_s)
        asyncio.set_event_loop(None)
        loop.close()


def join_threads(patience_s: float) -> None:
    """Wait for the loop's threads."""
    deadline = time.monotonic() + patience_s
    for thread in hanging_threads():
        thread.join(max(0.0, deadline - time.monotonic()))


def hanging_threads() -> list[threading.Thread]:
    """Threads of a loop that has ended which work on: the interpreter would wait for them for ever, so a process that
    has nothing more to do must end itself by `os._exit`."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME) and thread.is_alive()]
