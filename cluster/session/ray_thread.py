"""The thread that Ray lives in: `ray.init` and `ray.shutdown` are called there, and nowhere else.

A thread of its own for three reasons. In the main thread Ray puts a signal handler in place of ours that raises at any
line of ours. The processes that it starts inherit the thread's mask: those of a local Ray must not hear the signals
that a terminal, systemd or Slurm sends to all processes of the launcher, or the run would have nothing left to write
its last checkpoint with. And who waits for a thread can stop waiting; `ray.init` by itself may wait for a quarter of an
hour. Linux ends a local Ray's processes with the thread that started them, so it lives as long as Ray does.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import psutil
import ray

from cluster.session.bounded_loop import THREAD_NAME
from cluster.session.stop_signals import SIGNALS, end_processes

POLL_S: Final = 0.1
END_TIMEOUT_S: Final = 30.0
PATIENCE_S: Final = 3.0
"""For processes of a local Ray that has ended to end by themselves."""


class RayThread:
    """Connects by `ray.init(**options)` when it is started, and disconnects by `stop`."""

    def __init__(self, options: dict[str, Any], *, is_local: bool) -> None:
        self._options = options
        self._is_local = is_local
        self._before = _children()
        self._error: BaseException | None = None
        self.dashboard: str | None = None
        """http://HOST:PORT, once it has started; None where the cluster has none."""
        self._has_begun = threading.Event()
        self._may_end = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"{THREAD_NAME}-ray", daemon=True)

    def start(self, timeout_s: float, held: Callable[[], AbstractContextManager[Callable[[], bool]]]) -> None:
        """Return when Ray is there, or when the user has asked to stop: then it has begun, or has been given up.

        held: see StopSignals.held; Ray's C++ puts handlers of its own in place of ours, which would end this process.
        Raises what ray.init raises, and TimeoutError after `timeout_s`; Ray's processes then have ended.
        """
        deadline = time.monotonic() + timeout_s
        with held() as has_come:
            self._thread.start()
            while not self._has_begun.wait(POLL_S) and not has_come() and time.monotonic() < deadline:
                pass
            is_asked_to_stop = has_come()
        if self._error is None and self._has_begun.is_set():
            return
        self.stop()
        if self._error is not None:
            raise self._error
        if not is_asked_to_stop:
            raise TimeoutError(f"no answer within {timeout_s:g} s")

    def stop(self) -> None:
        """Disconnect; a local Ray ends, with every process of it."""
        started = [process for process in psutil.Process().children(recursive=True) if process.pid not in self._before]
        self._may_end.set()
        self._thread.join(END_TIMEOUT_S if self._has_begun.is_set() else PATIENCE_S)
        if self._is_local:
            end_processes([*started, *self._started_since(started)], PATIENCE_S)

    def _started_since(self, known: list[psutil.Process]) -> list[psutil.Process]:
        ids = self._before | {process.pid for process in known}
        return [process for process in psutil.Process().children(recursive=True) if process.pid not in ids]

    def _live(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            address = ray.init(**self._options).dashboard_url
            self.dashboard = f"http://{address}" if address else None
        except BaseException as error:  # noqa: BLE001 - `start` raises it, in the thread that waits
            self._error = error
        self._has_begun.set()
        self._may_end.wait()
        ray.shutdown()


def _children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}
