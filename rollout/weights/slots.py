"""Memory that the processes of one machine share, for buckets on their way from one to the other.

A slot is anonymous memory that others open by its path in /proc: it needs no room in /dev/shm, which is 64 MiB in a
container unless somebody asks for more, and it goes with the process that made it. It is used again for each bucket,
since the first touch of shared memory costs several times as much as a copy into it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from configs.errors import WeightSyncError
from rollout.records import UInt8Array, WeightBucket

_ALIGNMENT: Final = 64
"""Bytes; more than any dtype asks for, and what a copy is quickest from."""


@dataclass(frozen=True, slots=True)
class SlotContents:
    """What lies in a slot, so that another process can read it. All of it can be written as JSON."""

    path: str
    """Of the slot's memory; lives as long as the process that wrote it."""
    size: int
    """Bytes of the slot."""
    names: Sequence[str]
    dtypes: Sequence[str]
    shapes: Sequence[Sequence[int]]
    offsets: Sequence[int]
    """Where each tensor begins, in bytes."""
    num_bytes: Sequence[int]


class Slot:
    """Room for one bucket at a time; grows with the largest that it is given."""

    def __init__(self) -> None:
        self._file = os.memfd_create("bicot-weights", os.MFD_CLOEXEC)
        self._path = f"/proc/{os.getpid()}/fd/{self._file}"
        self._memory: UInt8Array = np.empty(0, np.uint8)

    def write(self, bucket: WeightBucket) -> SlotContents:
        """Copy a bucket in, over the one before. Raises WeightSyncError where there is no memory for it."""
        offsets, size = [], 0
        for array in bucket.arrays:
            offsets.append(size)
            size += math.ceil(array.nbytes / _ALIGNMENT) * _ALIGNMENT
        self._reserve(size)
        for offset, array in zip(offsets, bucket.arrays, strict=True):
            self._memory[offset : offset + array.nbytes] = array
        num_bytes = [array.nbytes for array in bucket.arrays]
        return SlotContents(
            self._path, self._memory.nbytes, bucket.names, bucket.dtypes, bucket.shapes, offsets, num_bytes
        )

    def _reserve(self, size: int) -> None:
        if size <= self._memory.nbytes:
            return
        try:
            os.posix_fallocate(self._file, 0, size)  # an error now, and not a signal at the first touch
            self._memory = np.memmap(self._path, dtype=np.uint8, mode="r+", shape=(size,))
        except OSError as error:
            raise WeightSyncError(f"no shared memory of {size} bytes for a bucket of weights: {error}") from error

    def close(self) -> None:
        """Give the memory back; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file, self._memory = -1, np.empty(0, np.uint8)


class SlotReader:
    """The other end: sees what lies in slots without copying it."""

    def __init__(self) -> None:
        self._memory: dict[str, UInt8Array] = {}

    def read(self, contents: SlotContents) -> WeightBucket:
        """The bucket in a slot, valid until its process writes the next one there."""
        memory = self._memory.get(contents.path)
        if memory is None or memory.nbytes < contents.size:
            memory = np.memmap(contents.path, dtype=np.uint8, mode="r+", shape=(contents.size,))
            self._memory[contents.path] = memory
        return WeightBucket(
            names=tuple(contents.names),
            dtypes=tuple(contents.dtypes),
            shapes=tuple(map(tuple, contents.shapes)),
            arrays=tuple(
                memory[offset : offset + size]
                for offset, size in zip(contents.offsets, contents.num_bytes, strict=True)
            ),
        )
