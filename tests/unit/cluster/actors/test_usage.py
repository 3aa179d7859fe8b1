"""What an actor says of its memory, against what another hand counts: psutil, and memory that is taken on purpose."""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from cluster.actors import usage
from cluster.actors.usage import UsageRecord, held_by_this_process

MB = 1 << 20
CHILD = "taken = bytearray(80 << 20); taken[::4096] = b'x' * len(taken[::4096]); print(1, flush=True); input()"
GRANDCHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@contextmanager
def running(*arguments: str) -> Iterator[None]:
    """A process that has told that it is ready, until the end."""
    command = [sys.executable, "-c", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        yield
        process.communicate("\n", timeout=20)


def held() -> int:
    return UsageRecord().take().held_bytes


@pytest.mark.parametrize("arguments", [(CHILD,), (GRANDCHILD, CHILD)], ids=["child", "grandchild"])
def test_memory_of_the_processes_that_were_started_counts_while_they_live(arguments: tuple[str, ...]) -> None:
    before, own = held(), held_by_this_process()
    with running(*arguments):
        assert 80 * MB < held() - before < 200 * MB
        assert held_by_this_process() - own < 40 * MB
    assert held() - before < 40 * MB


def test_memory_that_is_given_back_is_no_longer_held_but_in_the_peak() -> None:
    before = held_by_this_process()
    taken = mmap.mmap(-1, 96 * MB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    taken.write(b"x" * (96 * MB))
    assert held_by_this_process() - before > 90 * MB
    taken.close()
    assert held_by_this_process() - before < 40 * MB
    assert UsageRecord().take().peak_bytes > before + 90 * MB


def test_shared_memory_is_nobodys_own() -> None:
    before = held_by_this_process()
    with mmap.mmap(-1, 96 * MB) as shared:  # MAP_SHARED
        shared.write(b"x" * (96 * MB))
        assert held_by_this_process() - before < 40 * MB


def test_it_is_part_of_what_psutil_calls_resident() -> None:
    assert 0 < held_by_this_process() <= psutil.Process().memory_info().rss + 16 * MB


def test_a_kernel_that_lists_no_children_is_asked_by_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(CHILD):
        listed = sorted(usage._own_processes())
        monkeypatch.setattr("cluster.actors.usage.Path.exists", lambda _: False)
        assert sorted(usage._own_processes()) == listed
        assert len(listed) >= 2
