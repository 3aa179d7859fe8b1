"""A child process that ends when its parent ends, even when the parent is killed.

A rollout worker that Ray kills cannot close vLLM. Without this, vLLM's engine process would stay alive as an orphan,
and keep its memory or a whole GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Final

LOOK_EVERY_S: Final = 1.0


def end_with_parent() -> None:
    """Kill this process as soon as the process that started it by `multiprocessing` is gone; no-op in any other."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    started_by = os.getppid()

    def wait_and_end() -> None:
        # `join` waits on a pipe that stays open while any other process has inherited its end, so look up, too.
        while os.getppid() == started_by and parent.is_alive():
            parent.join(LOOK_EVERY_S)
        # The parent is gone, so there is nobody to return a result or an error to.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_and_end, name="end-with-parent", daemon=True).start()
