"""Signals set a flag, and nothing hangs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from cluster.session import StopSignals
from cluster.session.bounded_loop import hanging_threads, run_bounded
from cluster.session.stop_signals import end_processes, still_alive

ROOT = Path(__file__).resolve().parents[4]
EXIT_CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "exit_code"), EXIT_CODES)
def test_a_signal_before_the_run_raises_nowhere_but_where_it_is_looked_for(number: signal.Signals, exit_code: int):
    before = signal.signal(number, signal.SIG_DFL)  # pytest may have been started to ignore it, as nohup does
    try:
        with StopSignals() as signals:
            signals.check()
            signal.raise_signal(number)
            assert signals.exit_code == exit_code
            with pytest.raises(SystemExit) as exit_info:
                signals.check()
        assert exit_info.value.code == exit_code
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_inside_a_lock_leaves_the_lock_as_it_was():
    """Of logging, and in its own lines: there a handler that raised has hung a launcher for an hour."""
    with StopSignals() as signals:
        for _ in range(2000):
            timer = threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGTERM))
            timer.start()
            for _ in range(20):
                logging.Handler().close()
            timer.join()
        free = threading.Thread(target=lambda: logging.Handler().close(), daemon=True)
        free.start()
        free.join(10)
        assert not free.is_alive(), "logging's lock was kept"
        assert signals.has_come


async def test_a_signal_during_the_run_tells_it_to_stop():
    calls: list[str] = []
    with StopSignals() as signals, signals.calling(lambda: calls.append("stop")):
        signal.raise_signal(signal.SIGTERM)
        assert calls == []  # the run's own turn comes first
        await asyncio.sleep(0)
    assert calls == ["stop"]
    assert signals.exit_code == 143


async def test_a_signal_that_came_before_is_told_to_who_asks_later():
    calls: list[str] = []
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        with signals.calling(lambda: calls.append("stop")):
            await asyncio.sleep(0)
    assert calls == ["stop"]


def test_a_signal_that_was_ignored_from_the_start_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            signals.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_launcher_that_looks_at_no_signal_is_ended_with_all_that_it_started():
    code = (
        "import subprocess, sys, threading; from cluster.session import StopSignals\n"
        "with StopSignals(grace_s=0.5):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    print(child.pid, flush=True); threading.Lock().acquire(); threading.Event().wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"told to stop, and hung" in errors
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < deadline


def test_a_loop_ends_though_a_thread_of_it_hangs():
    release = threading.Event()

    async def leave_a_thread() -> int:
        task = asyncio.create_task(asyncio.to_thread(release.wait))
        await asyncio.sleep(0.05)
        task.cancel()
        return 7

    started = time.monotonic()
    assert run_bounded(leave_a_thread(), patience_s=0.2) == 7
    assert time.monotonic() - started < 10
    assert len(hanging_threads()) == 1
    release.set()
    for thread in hanging_threads():
        thread.join(10)
    assert hanging_threads() == []


def test_a_process_whose_pid_is_a_threads_by_now_has_ended() -> None:
    """To wait for it by its pid raises FileNotFoundError on recent kernels, which cost a chaos run its result."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, daemon=True)
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        living, ended = psutil.Process(child.pid), psutil.Process(child.pid)
        assert thread.native_id is not None
        ended._pid = ended._proc.pid = thread.native_id
        assert still_alive([living, ended]) == [living]
        end_processes([living, ended])
        child.wait(timeout=10)
        assert still_alive([living], patience_s=10) == []
        assert thread.is_alive()
    finally:
        stop.set()
        child.kill()
