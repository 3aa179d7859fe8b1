"""Child processes that end with their parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PARENT = """
import contextlib, multiprocessing, os, subprocess, sys, threading
from rollout.vllm.child_process import end_with_parent

class Arriving:  # as JanusOverride of rollout.vllm.plugin: the watch begins where it is unpickled
    def __reduce__(self):
        return end_with_parent, ()

def child(arrived):
    if arrived == "in time":
        end_with_parent()
    print(multiprocessing.current_process().pid, flush=True)
    threading.Event().wait(60)

if __name__ == "__main__":
    argument = Arriving() if "arriving" in sys.argv else "in time"
    multiprocessing.get_context("spawn").Process(target=child, args=(argument,)).start()
    if "heir" in sys.argv:
        for name in os.listdir("/proc/self/fd"):  # the child's pipe is among them
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), True)
        heir = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL)
        print(heir.pid, flush=True)
    threading.Event().wait(60)
"""


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": os.environ["PATH"]},
    )


def read_processes(parent: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    assert parent.stdout is not None
    return [psutil.Process(int(parent.stdout.readline())) for _ in range(count)]


@pytest.mark.parametrize("how", ["running", "arriving"])
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, how: str) -> None:
    with start(tmp_path, how) as parent:
        (child,) = read_processes(parent, 1)
        assert child.is_running()
        parent.kill()
    child.wait(timeout=20)  # raises when it is still there


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end by a signal")
def test_a_frozen_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    with start(tmp_path, "running") as parent:
        (child,) = read_processes(parent, 1)
        child.suspend()
        parent.kill()
    try:
        child.wait(timeout=20)
    finally:
        if child.is_running():
            child.kill()


def test_a_child_ends_also_while_another_process_holds_the_pipe_it_watches(tmp_path: Path) -> None:
    with start(tmp_path, "heir") as parent:
        processes = {process.name(): process for process in read_processes(parent, 2)}
        heir = processes.pop("sleep")
        (child,) = processes.values()
        parent.kill()
    try:
        child.wait(timeout=20)
        assert heir.is_running()
    finally:
        heir.kill()
