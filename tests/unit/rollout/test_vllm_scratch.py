"""What an engine leaves behind goes with it, or with the next one."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rollout.vllm.scratch import SHARED_MEMORY, end_scratch, make_scratch, sweep_scratch, temporary_files_in

pytestmark = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="semaphores are no files here")

KILLED = """
import multiprocessing, os, signal
from multiprocessing.resource_tracker import _resource_tracker
from rollout.vllm.scratch import make_scratch, temporary_files_in

scratch = make_scratch()
with temporary_files_in(scratch.path):
    lock = multiprocessing.get_context("spawn").Lock()
print(scratch.path.name, flush=True)
os.kill(_resource_tracker._pid, signal.SIGKILL)  # as where a whole container is ended
os.kill(os.getpid(), signal.SIGKILL)
"""


def semaphores(folder: str) -> list[Path]:
    return list(SHARED_MEMORY.glob(f"sem.{folder}-*"))


def test_the_semaphores_of_a_killed_engine_are_swept_and_those_of_a_living_one_stay() -> None:
    with tempfile.TemporaryDirectory(prefix="bt-") as folder:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "TMPDIR": folder}
        killed = subprocess.run(
            [sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, check=False
        )
        name = killed.stdout.strip()
        assert len(semaphores(name)) == 1, killed.stderr
        scratch = make_scratch()
        with temporary_files_in(scratch.path):
            lock = multiprocessing.get_context("spawn").Lock()
        sweep_scratch(Path(folder))
        assert semaphores(name) == []
        assert len(semaphores(scratch.path.name)) == 1
    with lock:
        pass
    del lock
    end_scratch(scratch)
    assert semaphores(scratch.path.name) == []


def test_other_semaphores_keep_pythons_own_names() -> None:
    scratch = make_scratch()
    with temporary_files_in(scratch.path):
        pass
    lock = multiprocessing.get_context("spawn").Lock()
    assert semaphores(scratch.path.name) == []
    del lock
    end_scratch(scratch)
