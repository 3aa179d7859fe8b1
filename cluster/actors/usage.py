"""What an actor uses: seconds to start, the memory that its processes hold, and the most that they held."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one actor, with the processes that it started. Produced by every actor; consumed by a rehearsal, and by the
    metrics `memory/…` of a run."""

    start_s: float | None
    """From its constructor until its models were loaded; None while they are being loaded."""
    held_bytes: int
    """What its processes hold now, each for itself: heaps and stacks (the kernel's RssAnon). Without the pages of files
    and libraries, and without shared memory such as Ray's object store, which several would count."""
    held_gpu_bytes: int
    """Memory that PyTorch reserves on the device now, in the actor's own process, see `peak_gpu_bytes`."""
    peak_bytes: int
    """Largest resident memory, shared pages included, added up over its processes."""
    peak_gpu_bytes: int
    """Largest memory that PyTorch reserved on the device, in the actor's own process. An engine that has a process of
    its own is not in it: that takes the share of the device that `rollout.gpu_memory_utilization` names."""


class UsageRecord:
    """Kept by an actor about itself."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._start_s: float | None = None

    def started(self) -> None:
        """To be called once the models are loaded."""
        self._start_s = time.monotonic() - self._begun_s

    def take(self) -> Usage:
        memories = [_memory_of(pid) for pid in _own_processes()]
        held, peak = (sum(values) for values in zip(*memories, strict=True))
        return Usage(self._start_s, held, _gpu_bytes("memory_reserved"), peak, _gpu_bytes("max_memory_reserved"))


def ask_usage(handle: Any) -> Any:
    """A call for an actor's `Usage`, which a learner answers while it computes; None for an actor that keeps none."""
    method = getattr(handle, "usage", None)
    if method is None:
        return None
    is_learner = getattr(handle, "pulse", None) is not None
    return method.options(concurrency_group="pulse").remote() if is_learner else method.remote()


def held_by_this_process() -> int:
    """`Usage.held_bytes` of this process alone, without those that it started."""
    return _memory_of(os.getpid())[0]


def _own_processes() -> Iterator[int]:
    """This process and those that it has started, and so on."""
    own = os.getpid()
    if not Path("/proc/thread-self/children").exists():  # a kernel without CONFIG_PROC_CHILDREN, or none of Linux
        yield from (own, *(child.pid for child in psutil.Process(own).children(recursive=True)))
        return
    # psutil would read of every process of the machine who its parent is: of hundreds on a node of a cluster.
    found = [own]
    while found:
        yield (pid := found.pop())
        found += _children_of(pid)


def _children_of(pid: int) -> list[int]:
    try:
        texts = [(task / "children").read_text(encoding="ascii") for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # it, or a thread of it, has ended meanwhile
        return []
    return [int(child) for text in texts for child in text.split()]


def _memory_of(pid: int) -> tuple[int, int]:
    """What a process holds now, and the kernel's high-water mark of all that was resident; 0 of one that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        resident = psutil.Process(pid).memory_info().rss if pid == os.getpid() else 0
        return resident, resident
    sizes = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in text.splitlines() if line.endswith(" kB")}
    return sizes.get("RssAnon", 0), sizes.get("VmHWM", 0)


def _gpu_bytes(figure: str) -> int:
    """Of this function of `torch.cuda`; 0 where there is no device, or none in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(getattr(torch.cuda, figure)())
