"""Serialization of weights: the buckets of bytes that the learner publishes and engines load.

    named tensors ─► pack_bucket ─► WeightBucket ─► unpack_bucket ─► named tensors

NumPy has no bfloat16, so a bucket is raw bytes with each tensor's name, dtype and shape beside it.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from configs.errors import WeightSyncError
from rollout.records import WeightBucket

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SHARED_MEMORY = Path("/dev/shm")
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def pack_bucket(tensors: Sequence[tuple[str, torch.Tensor]]) -> WeightBucket:
    """One bucket of (name, tensor) pairs, float32 or bfloat16, on any device.

    Raises WeightSyncError for another dtype.
    """
    for name, tensor in tensors:
        if tensor.dtype not in _NAMES:
            raise WeightSyncError(f"weight '{name}' is {tensor.dtype}; only {', '.join(_NAMES.values())} are shipped")
    data = np.empty(sum(tensor.nbytes for _, tensor in tensors), dtype=np.uint8)
    offset = 0
    for _, tensor in tensors:
        chunk = torch.from_numpy(data[offset : offset + tensor.nbytes])
        chunk.copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
        offset += tensor.nbytes
    return WeightBucket(
        names=tuple(name for name, _ in tensors),
        dtypes=tuple(_NAMES[tensor.dtype] for _, tensor in tensors),
        shapes=tuple(tuple(tensor.shape) for _, tensor in tensors),
        data=data,
    )


def unpack_bucket(bucket: WeightBucket) -> Iterator[tuple[str, torch.Tensor]]:
    """The (name, CPU tensor) pairs of a bucket. Copies, since a bucket that came through shared memory is read-only.

    Raises WeightSyncError when names, dtypes, shapes and data do not fit each other.
    """
    offset = 0
    try:
        for name, dtype_name, shape in zip(bucket.names, bucket.dtypes, bucket.shapes, strict=True):
            dtype = _DTYPES[dtype_name]
            chunk = bucket.data[offset : offset + math.prod(shape) * dtype.itemsize]
            # A fresh tensor is aligned for its dtype, which a slice of the bucket need not be.
            raw = torch.empty(len(chunk), dtype=torch.uint8)
            raw.numpy()[:] = chunk
            yield name, raw.view(dtype).reshape(shape)
            offset += len(chunk)
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightSyncError(f"a weight bucket of {len(bucket.names)} tensors is malformed: {error}") from error
    if offset != bucket.data.size:
        raise WeightSyncError(f"a weight bucket holds {bucket.data.size} bytes, its tensors take {offset}")


@contextmanager
def bucket_file(bucket: WeightBucket) -> Iterator[str]:
    """The bucket's bytes in a file that lives as long as the context; in memory, where there is room for them."""
    in_memory = _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > bucket.data.nbytes
    with tempfile.NamedTemporaryFile(prefix="bicot-weights-", dir=_SHARED_MEMORY if in_memory else None) as file:
        bucket.data.tofile(file)
        file.flush()
        yield file.name
