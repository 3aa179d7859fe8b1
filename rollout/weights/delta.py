"""A weight version as what it changes of the one before: positions, and the new values as they are.

    learner: buckets ─► DeltaEncoder, which keeps the version before ─► DeltaBucket, DeltaBucket, ...
    worker:  DeltaBucket ─► WeightReplica, which keeps it, too ─► WeightBucket, as if all had come

Applying it is copying, so that the result is exact. At the learning rates of reinforcement learning a step leaves most
bfloat16 values as they are (docs/weight_sync.md has numbers). Positions are offsets into blocks of 256 or 65,536
values, whichever takes less; a tensor whose changes would take more than half of it goes whole.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from configs.errors import WeightSyncError
from rollout.records import UInt8Array, WeightBucket, WeightVersion

_WORDS: Final[dict[str, type[np.unsignedinteger[Any]]]] = {"bfloat16": np.uint16, "float32": np.uint32}
_BLOCKS: Final = {256: (np.uint8, np.uint16), 65536: (np.uint16, np.uint32)}
"""Values in a block: dtypes of an offset into it, and of a number of offsets."""
_LARGEST_SHARE: Final = 0.5
"""Of a tensor's bytes, what its changes may take."""
Words = npt.NDArray[np.unsignedinteger[Any]]


class UnfitDeltaError(WeightSyncError):
    """A delta was made of other weights than it is applied to, or is damaged."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Of one tensor."""

    block: int
    """How many values; the last block may be shorter."""
    counts: Words
    """[blocks] changed values of each."""
    offsets: Words
    """[changed] position of each in its block, rising."""
    values: Words
    """[changed] the bits of the new ones."""
    checksum: int
    """CRC-32, begun with `block`, over the old values at these positions, `counts`, `offsets` and `values`."""

    @property
    def nbytes(self) -> int:
        return self.counts.nbytes + self.offsets.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True)
class DeltaBucket:
    """Some tensors of a version, each as its changes or as all of its bytes; see `WeightBucket`."""

    base: WeightVersion
    """The version that they are changes of."""
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    contents: tuple[Changes | UInt8Array, ...]


class DeltaSummary(NamedTuple):
    """What an encoder has made of one version."""

    is_whole: bool
    """None of it refers to a version before."""
    num_bytes: int
    """Sent."""
    num_changed: int
    """Values that differ from the version before; all of them where that was not kept."""
    num_values: int


class DeltaEncoder:
    """Keeps a copy of the last version that was encoded, in the host's memory."""

    def __init__(self) -> None:
        self._kept: dict[str, UInt8Array] = {}
        self._version: WeightVersion | None = None
        self._is_whole, self._num_bytes, self._num_changed, self._num_values = True, 0, 0, 0

    def encode(
        self, version: WeightVersion, base: WeightVersion | None, buckets: Iterable[WeightBucket]
    ) -> Iterator[WeightBucket | DeltaBucket]:
        """The buckets of `version` as changes of `base`; as they are where `base` is None, or not what was encoded
        last. Each is valid until the next is asked for."""
        self._is_whole = base is None or self._version != base
        self._version = None  # until all have been encoded, what is kept is of two versions
        self._num_bytes = self._num_changed = self._num_values = 0
        for bucket in buckets:
            entries = zip(bucket.names, bucket.dtypes, bucket.arrays, strict=True)
            contents = tuple(self._take(name, dtype, array) for name, dtype, array in entries)
            self._num_bytes += sum(each.nbytes for each in contents)
            if base is None or self._is_whole:
                yield bucket
            else:
                yield DeltaBucket(base, bucket.names, bucket.dtypes, bucket.shapes, contents)
        self._version = version

    @property
    def summary(self) -> DeltaSummary:
        """Of the version that was encoded last."""
        return DeltaSummary(self._is_whole, self._num_bytes, self._num_changed, self._num_values)

    def _take(self, name: str, dtype: str, array: UInt8Array) -> Changes | UInt8Array:
        new = array.view(_WORDS[dtype])
        kept = self._kept.get(name)
        self._num_values += new.size
        if self._is_whole or kept is None or kept.nbytes != array.nbytes:
            _keep(self._kept, name, array)
            self._num_changed += new.size
            return array
        old = kept.view(new.dtype)
        positions = np.flatnonzero(old != new)
        self._num_changed += positions.size
        changes = changes_at(positions, old, new)
        old[positions] = new[positions]
        return changes if changes.nbytes <= _LARGEST_SHARE * array.nbytes else array


class WeightReplica:
    """A worker's copy of the version that it was sent last, in the host's memory."""

    def __init__(self) -> None:
        self._kept: dict[str, UInt8Array] = {}
        self.version: WeightVersion | None = None
        """None while it holds parts of two, and before it holds any."""

    async def follow(
        self, version: WeightVersion, buckets: AsyncIterable[WeightBucket | DeltaBucket]
    ) -> AsyncGenerator[WeightBucket]:
        """Take the buckets of `version`, and give each as a whole one; it shares the replica's memory, and is valid
        until the replica follows another version.

        Raises UnfitDeltaError for changes of another version than it holds, or damaged ones; it then holds none.
        """
        before, self.version = self.version, None
        async for bucket in buckets:
            whole = await asyncio.to_thread(self._take, before, bucket)
            del bucket  # else it would be held while the next one is waited for
            yield whole
        self.version = version

    def forget(self) -> None:
        """Hold no version: the next one has to come whole."""
        self.version = None

    def _take(self, before: WeightVersion | None, bucket: WeightBucket | DeltaBucket) -> WeightBucket:
        contents: tuple[Changes | UInt8Array, ...]
        if isinstance(bucket, DeltaBucket):
            if bucket.base != before:
                raise UnfitDeltaError(f"weights came as changes of {bucket.base}, where {before} is held")
            contents = bucket.contents
        else:
            contents = bucket.arrays
        for name, dtype, content in zip(bucket.names, bucket.dtypes, contents, strict=True):
            if not isinstance(content, Changes):
                _keep(self._kept, name, content)
            elif (kept := self._kept.get(name)) is None:
                raise UnfitDeltaError(f"weight '{name}' came as changes, where none of it is held")
            else:
                apply_changes(content, kept.view(_WORDS[dtype]), name)
        arrays = tuple(self._kept[name] for name in bucket.names)
        return WeightBucket(bucket.names, bucket.dtypes, bucket.shapes, arrays)


def changes_at(positions: npt.NDArray[np.intp], old: Words, new: Words) -> Changes:
    """What `old` has to take of `new`, [values] both, at these rising positions."""

    def num_bytes(block: int) -> int:
        offset, count = _BLOCKS[block]
        return positions.size * np.dtype(offset).itemsize + math.ceil(old.size / block) * np.dtype(count).itemsize

    block = min(_BLOCKS, key=num_bytes)
    offset, count = _BLOCKS[block]
    counts = np.bincount(positions // block, minlength=math.ceil(old.size / block)).astype(count)
    offsets = (positions % block).astype(offset)
    values = new[positions]
    return Changes(block, counts, offsets, values, _checksum(block, old[positions], counts, offsets, values))


def apply_changes(changes: Changes, kept: Words, name: str) -> None:
    """Copy the new values into `kept`, [values]. Raises UnfitDeltaError, naming the tensor, and then copies none."""
    starts = np.arange(changes.counts.size, dtype=np.int64) * changes.block
    fits = changes.counts.sum(dtype=np.int64) == changes.offsets.size == changes.values.size
    if fits and changes.values.dtype == kept.dtype:
        positions = np.repeat(starts, changes.counts) + changes.offsets
        if not positions.size or positions.max() < kept.size:
            own = _checksum(changes.block, kept[positions], changes.counts, changes.offsets, changes.values)
            if own == changes.checksum:
                kept[positions] = changes.values
                return
    raise UnfitDeltaError(f"the changes of weight '{name}' were made of other values than are held, or are damaged")


def _checksum(block: int, *arrays: Words) -> int:
    checksum = block
    for array in arrays:
        checksum = zlib.crc32(array.view(np.uint8).data, checksum)
    return checksum


def _keep(kept: dict[str, UInt8Array], name: str, array: UInt8Array) -> None:
    """Copy `array` into memory that was held for this name, or into new."""
    if name not in kept or kept[name].nbytes != array.nbytes:
        kept[name] = np.empty(array.nbytes, np.uint8)
    np.copyto(kept[name], array)
