"""A child process that ends with its parent, even when the parent is killed.

A rollout worker that Ray kills has no chance to close vLLM, whose engine process would then stay
for good, with all its memory or a whole GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Kill this process as soon as the process that started it by `multiprocessing` is gone; no-op in any other."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait_and_end() -> None:
        parent.join()
        # Nobody is left to receive what is being computed, nor to be told.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_and_end, name="end-with-parent", daemon=True).start()
