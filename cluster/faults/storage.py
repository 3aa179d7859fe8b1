"""Small file systems of a run's own, in memory, so that filling them harms nobody else; and filling them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

DISK_FULL, SHM_FULL = "disk-full", "shm-full"
FULL_S: Final = 10.0
SMALL_DISK_MIB: Final = 512
SHARED_MEMORY_MIB: Final = 1536
"""Room for the object store of a small run, which is 1 GiB."""
FILLER = "filler"


@dataclass(frozen=True, slots=True)
class Full:
    """An injury: see `cluster.faults.injuries`."""

    kind: str
    directory: Path
    victim: str = "run"
    lasts_s: float = FULL_S

    def inflict(self) -> None:
        """Write until the file system takes no more byte."""
        with (self.directory / FILLER).open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def end(self) -> None:
        (self.directory / FILLER).unlink(missing_ok=True)


def own_shared_memory() -> tuple[str, ...]:
    """What to put before a command so that it, and all that it starts, have a /dev/shm of their own."""
    mount = f"mount -t tmpfs -o size={SHARED_MEMORY_MIB}m bicot-chaos /dev/shm"
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", f'{mount} && exec "$@"', "sh")


def shared_memory_of(process: psutil.Process) -> Path:
    """/dev/shm as a process sees it."""
    return Path(f"/proc/{process.pid}/root/dev/shm")


def why_no_small_disk() -> str | None:
    """Why `disk-full` and `shm-full` cannot be tried on this machine, or None."""
    if os.name != "posix" or os.geteuid() != 0:
        return "only root may mount a small file system for the run"
    return None


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """`directory` on a file system of its own, of SMALL_DISK_MIB MiB in memory, so that filling it harms nobody."""
    options = f"size={SMALL_DISK_MIB}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "bicot-chaos", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
