"""Ctrl-C, SIGTERM and a closed terminal: before a run they end the launcher, during it they end the run in good order.

    signal ─► handler: notes it, and wakes who asked to be woken (`calling`)
                 └─► `check`, between two steps of the start: SystemExit
                 └─► watchdog: nobody has looked for `GRACE_S`: the process ends, and what it started with it

A handler runs between any two lines of the main thread, perhaps with a lock held that the interrupted line was about to
give back. One that raises there may leave the lock locked for ever, so these never raise.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Self

import psutil

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S: Final = 90.0
"""How long the launcher may take to look at a signal while nothing of it waits for one."""
_POLL_S: Final = 0.5
_LOOK_S: Final = 0.05


class StopSignals:
    """Handles the signals while it is entered, and remembers which one came last. For the main thread.

    Plain handlers and not those of the event loop: they hold from before the loop is there until after it has gone.
    A signal that the launcher was started to ignore (nohup, for SIGHUP) stays ignored.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.exit_code = 0
        """128 + the signal's number, as shells have it; 0 while none has come."""
        self._grace_s = grace_s
        self._tell_run: Callable[[], object] | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._since_s = 0.0
        self._has_ended = threading.Event()

    def check(self) -> None:
        """Raises SystemExit with the exit code when a signal has come. To be called where nothing is half done."""
        if self.exit_code:
            raise SystemExit(self.exit_code)

    @property
    def has_come(self) -> bool:
        return self.exit_code != 0

    @contextmanager
    def calling(self, stop: Callable[[], object]) -> Iterator[None]:
        """Meanwhile each signal calls `stop` in the event loop that is running here; one that came before, at once."""
        loop = asyncio.get_running_loop()
        before = self._tell_run
        self._install()
        self._tell_run = lambda: loop.call_soon_threadsafe(self._stop, stop)
        if self.has_come:
            self._tell_run()
        try:
            yield
        finally:
            self._since_s = time.monotonic()
            self._tell_run = before

    def __enter__(self) -> Self:
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        self._install()
        threading.Thread(target=self._watch, name="stop-signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[Callable[[], bool]]:
        """Meanwhile no handler runs; gives a function that tells whether a signal waits. Its handler runs at the end,
        ours again, whatever a library has put in its place."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield lambda: bool(signal.sigpending() & set(SIGNALS))
        finally:
            self._install()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _install(self) -> None:
        for number, handler in self._previous.items():
            if handler is not signal.SIG_IGN or number is signal.SIGTERM:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        if not self._since_s:
            self._since_s = time.monotonic()
        if self._tell_run is not None:
            self._tell_run()

    def _stop(self, stop: Callable[[], object]) -> None:
        if self.exit_code == 128 + signal.SIGHUP:
            leave_terminal()
        stop()

    def _watch(self) -> None:
        block_signals()
        while not self._has_ended.wait(_POLL_S):
            if self.has_come and self._tell_run is None and time.monotonic() - self._since_s > self._grace_s:
                end_at_once(self.exit_code, f"told to stop, and hung for {self._grace_s:g} s")


def block_signals() -> None:
    """In a thread beside the main one, so that the main thread alone gets signals, and can hold them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def leave_terminal() -> None:
    """Print to nowhere from now on, where standard output or error is a terminal: it is gone, and would raise."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def end_at_once(exit_code: int, reason: str) -> None:
    """End this process and all that it has started, whatever its threads wait for."""
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {reason}; ended without waiting any longer", file=sys.stderr, flush=True)
    end_processes(psutil.Process().children(recursive=True))
    os._exit(exit_code)


class LastToExit:
    """Ends this process once Python has nothing more to do, and leaves out what native libraries would do then.

    After a run that had ended well, one of theirs was seen to crash at the very end: a scheduler that reads the exit
    code would take the run for failed. Make it before Ray and torch are imported: what is registered first comes last.
    """

    def __init__(self) -> None:
        self._exit_code: int | None = None
        atexit.register(self._end)

    def returned(self, exit_code: int) -> int:
        """The command has returned this; without it the process ends as any other. Returns it."""
        self._exit_code = exit_code
        return exit_code

    def _end(self) -> None:
        if self._exit_code is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self._exit_code)


def end_processes(processes: list[psutil.Process], patience_s: float = 0.0) -> None:
    """Wait for processes to end by themselves, and kill those that have not."""
    for process in still_alive(processes, patience_s):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def still_alive(processes: Iterable[psutil.Process], patience_s: float = 0.0) -> list[psutil.Process]:
    """Those that have not ended within `patience_s` seconds; a zombie has ended.

    Not `psutil.wait_procs`: it takes exit codes from those who started the processes, and raises FileNotFoundError when
    the pid of one that ended has become a thread's of another.
    """
    deadline_s = time.monotonic() + patience_s
    while alive := [process for process in processes if _is_alive(process)]:
        if time.monotonic() >= deadline_s:
            break
        time.sleep(_LOOK_S)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
