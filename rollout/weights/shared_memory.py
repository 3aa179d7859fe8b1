"""Anonymous memory that other processes of the machine open by its path in /proc.

It needs no room in /dev/shm, which is 64 MiB in a container unless somebody asks for more, and it goes with the process
that made it.
"""

from __future__ import annotations

import os
import weakref

import numpy as np

from configs.errors import WeightSyncError
from rollout.records import UInt8Array


class SharedMemory:
    """Grows, and never shrinks: the first touch of shared memory costs several times as much as a copy into it."""

    def __init__(self) -> None:
        file = os.memfd_create("bicot-weights", os.MFD_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{file}"
        """Lives as long as this object."""
        self.bytes: UInt8Array = np.empty(0, np.uint8)
        self._file = file
        self._closing = weakref.finalize(self, os.close, file)

    def reserve(self, size: int) -> None:
        """Have at least `size` bytes; what was there is there. Raises WeightSyncError where memory is short."""
        if size <= self.bytes.nbytes:
            return
        try:
            os.posix_fallocate(self._file, 0, size)  # an error now, and not a signal at the first touch
            self.bytes = open_shared(self.path, size)
        except OSError as error:
            raise WeightSyncError(f"no shared memory of {size} bytes for a bucket of weights: {error}") from error

    def close(self) -> None:
        """Give the memory back, once nobody has it open; safe to call twice."""
        self._closing()
        self.bytes = np.empty(0, np.uint8)


def open_shared(path: str, size: int) -> UInt8Array:
    """The first `size` bytes of another process' `SharedMemory`. Raises OSError when that process is gone."""
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=(size,))
