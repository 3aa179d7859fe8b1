"""What an actor has used so far: seconds to start, and the most memory that its processes held."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one actor, with the processes that it started. Produced by every actor; consumed by a rehearsal."""

    start_s: float | None
    """From its constructor until its models were loaded; None while they are being loaded."""
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
        return Usage(self._start_s, _peak_of_processes(), _peak_of_gpu())


def _peak_of_processes() -> int:
    own = psutil.Process()
    return sum(_peak_of(pid) for pid in (own.pid, *(child.pid for child in own.children(recursive=True))))


def _peak_of(pid: int) -> int:
    """The kernel's high-water mark; 0 of a process that has ended meanwhile."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
    except OSError:
        return psutil.Process(pid).memory_info().rss if pid == os.getpid() else 0


def _peak_of_gpu() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_reserved())
