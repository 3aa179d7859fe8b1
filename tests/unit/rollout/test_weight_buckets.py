"""Weights survive the way through bytes, bit for bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from configs.errors import WeightSyncError
from rollout.weights import unpack_bucket
from rollout.weights.buckets import pack_bucket


def some_tensors() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        ("odd", torch.randn(3, generator=generator).bfloat16()),
        ("matrix", torch.randn(4, 5, generator=generator).T),
        ("scalar", torch.tensor(2.5)),
        ("empty", torch.zeros(0, 7)),
        ("wide", torch.randn(2, 3, 4, generator=generator).bfloat16()),
    ]


def test_tensors_come_back_bit_for_bit_from_a_read_only_bucket():
    bucket = pack_bucket(some_tensors())
    for array in bucket.arrays:
        array.flags.writeable = False
    unpacked = list(unpack_bucket(bucket))
    assert [name for name, _ in unpacked] == [name for name, _ in some_tensors()]
    for (_, before), (_, after) in zip(some_tensors(), unpacked, strict=True):
        assert after.dtype == before.dtype
        torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_dtype_that_is_not_shipped_is_named():
    with pytest.raises(WeightSyncError, match=r"'index' is torch\.int64"):
        pack_bucket([("index", torch.arange(3))])


@pytest.mark.parametrize(
    "damage",
    [{"shapes": ((2, 2),)}, {"shapes": ((9, 9),)}, {"dtypes": ("float16",)}, {"names": ("a", "b")}],
    ids=lambda damage: str(damage),
)
def test_a_bucket_that_does_not_add_up_is_refused(damage: dict[str, tuple[object, ...]]):
    bucket = pack_bucket([("a", torch.ones(3, 3))])
    with pytest.raises(WeightSyncError):
        list(unpack_bucket(dataclasses.replace(bucket, **damage)))
