"""Memory that the processes of one machine share, for buckets on their way from one to the other.

A slot is memory that others open, see `rollout.weights.shared_memory`, and is used again for each bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rollout.records import UInt8Array, WeightBucket
from rollout.weights.shared_memory import SharedMemory, open_shared

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
        self._memory = SharedMemory()

    def write(self, bucket: WeightBucket) -> SlotContents:
        """Copy a bucket in, over the one before. Raises WeightSyncError where there is no memory for it."""
        offsets, size = [], 0
        for array in bucket.arrays:
            offsets.append(size)
            size += math.ceil(array.nbytes / _ALIGNMENT) * _ALIGNMENT
        self._memory.reserve(size)
        memory = self._memory.bytes
        for offset, array in zip(offsets, bucket.arrays, strict=True):
            memory[offset : offset + array.nbytes] = array
        num_bytes = [array.nbytes for array in bucket.arrays]
        return SlotContents(
            self._memory.path, memory.nbytes, bucket.names, bucket.dtypes, bucket.shapes, offsets, num_bytes
        )

    def close(self) -> None:
        """Give the memory back; safe to call twice."""
        self._memory.close()


class SlotReader:
    """The other end: sees what lies in slots without copying it."""

    def __init__(self) -> None:
        self._memory: dict[str, UInt8Array] = {}

    def read(self, contents: SlotContents) -> WeightBucket:
        """The bucket in a slot, valid until its process writes the next one there."""
        memory = self._memory.get(contents.path)
        if memory is None or memory.nbytes < contents.size:
            memory = open_shared(contents.path, contents.size)
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
