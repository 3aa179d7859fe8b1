"""A process that has returned ends with that exit code, whatever native libraries do at its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
CRASH = """
import atexit, ctypes, sys, threading, time
from cluster.session.stop_signals import LastToExit
if {first}:
    last = LastToExit()
# What a library registers in C, which calls no code that there is.
ctypes.CDLL(None).__cxa_atexit(ctypes.c_void_p(1), None, None)
atexit.register(print, "registered later")
def work():
    time.sleep(0.2)
    print("a thread that was not waited for")
threading.Thread(target=work).start()
if {returns}:
    sys.exit(last.returned(3) if {first} else 3)
sys.exit(5)
"""


def end_of(first: bool, returns: bool = True) -> subprocess.CompletedProcess[str]:
    code = CRASH.format(first=first, returns=returns)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_crash_of_native_code_at_the_end_does_not_change_the_exit_code() -> None:
    assert end_of(first=False).returncode == -11, "the crash is one"
    done = end_of(first=True)
    assert done.returncode == 3
    assert done.stdout == "a thread that was not waited for\nregistered later\n", "Python's own end is whole"
    assert done.stderr == ""


def test_a_process_that_ends_otherwise_ends_as_any_other() -> None:
    assert end_of(first=True, returns=False).returncode == -11
