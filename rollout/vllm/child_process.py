"""A child process that ends when its parent ends, even when the parent is killed.

A rollout worker that Ray kills cannot close vLLM. Without this, vLLM's engine process would stay alive as an orphan,
and keep its memory or a whole GPU.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Final

LOOK_EVERY_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1  # of linux/prctl.h


def end_with_parent() -> None:
    """Kill this process within about LOOK_EVERY_S once the process that has started it is gone; on Linux also where
    this one is frozen by then, once the thread that has started it has ended.

    To be called in a process that was started for its parent alone. It may be called while the arguments of a spawned
    process are still being unpickled: then `multiprocessing.parent_process()` is not known yet, but the parent's id is.
    """
    started_by = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait_and_end() -> None:
        # An orphan gets another parent. No pipe is watched instead: any other process may have inherited its end.
        while os.getppid() == started_by:
            time.sleep(LOOK_EVERY_S)
        # The parent is gone, so there is nobody to return a result or an error to.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_and_end, name="end-with-parent", daemon=True).start()
