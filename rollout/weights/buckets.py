"""Serialization of weights: the buckets of bytes that the learner publishes and engines load.

    named tensors ─► view_bucket ─► WeightBucket ─► unpack_bucket ─► named tensors

NumPy has no bfloat16, so a bucket is raw bytes with each tensor's name, dtype and shape beside it. Each tensor is an
array of its own: Ray writes arrays into its store as they lie, and maps them from there, without a copy between.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence

import torch

from configs.errors import WeightSyncError
from rollout.records import BucketStream, WeightBucket

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def view_bucket(tensors: Sequence[tuple[str, torch.Tensor]]) -> WeightBucket:
    """One bucket of (name, tensor) pairs, float32 or bfloat16, on any device. It shares the memory of contiguous CPU
    tensors, and so is valid as long as they are.

    Raises WeightSyncError for another dtype.
    """
    for name, tensor in tensors:
        if tensor.dtype not in _NAMES:
            raise WeightSyncError(f"weight '{name}' is {tensor.dtype}; only {', '.join(_NAMES.values())} are shipped")
    return WeightBucket(
        names=tuple(name for name, _ in tensors),
        dtypes=tuple(_NAMES[tensor.dtype] for _, tensor in tensors),
        shapes=tuple(tuple(tensor.shape) for _, tensor in tensors),
        arrays=tuple(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy() for _, tensor in tensors),
    )


def pack_bucket(tensors: Sequence[tuple[str, torch.Tensor]]) -> WeightBucket:
    """`view_bucket` of copies: a bucket with memory of its own."""
    return view_bucket([(name, tensor.detach().clone()) for name, tensor in tensors])


def unpack_bucket(bucket: WeightBucket) -> Iterator[tuple[str, torch.Tensor]]:
    """The (name, CPU tensor) pairs of a bucket. They share its memory, except where it is read-only, as what Ray's
    store gives is.

    Raises WeightSyncError when names, dtypes, shapes and bytes do not fit each other.
    """
    try:
        for name, dtype_name, shape, array in zip(
            bucket.names, bucket.dtypes, bucket.shapes, bucket.arrays, strict=True
        ):
            dtype = _DTYPES[dtype_name]
            if array.nbytes != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{array.nbytes} bytes for '{name}', {dtype_name} {tuple(shape)}")
            raw = torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)
            # NumPy may give an empty array a stride that PyTorch cannot view as another dtype.
            yield name, (raw.view(dtype) if array.size else raw.new_empty(0, dtype=dtype)).reshape(shape)
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightSyncError(f"a weight bucket of {len(bucket.names)} tensors is malformed: {error}") from error


async def each_bucket(buckets: BucketStream) -> AsyncIterator[WeightBucket]:
    """One bucket after the other, however they are given."""
    if isinstance(buckets, AsyncIterable):
        async for bucket in buckets:
            yield bucket
    else:
        for bucket in buckets:
            yield bucket
