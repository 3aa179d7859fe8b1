"""Changes of weights: what is applied is what was encoded, bit for bit, or is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rollout.records import WeightBucket, WeightVersion
from rollout.weights.buckets import pack_bucket
from rollout.weights.delta import (
    Changes,
    DeltaBucket,
    DeltaEncoder,
    UnfitDeltaError,
    WeightReplica,
    apply_changes,
    changes_at,
)

FIRST, SECOND, THIRD = (WeightVersion(0, number) for number in (1, 2, 3))


async def stream(buckets: Iterable[Any]) -> AsyncIterator[Any]:
    for bucket in buckets:
        yield bucket


def follow(replica: WeightReplica, version: WeightVersion, buckets: Iterable[Any]) -> dict[str, bytes]:
    async def take() -> list[WeightBucket]:
        return [bucket async for bucket in replica.follow(version, stream(buckets))]

    return {name: value for bucket in asyncio.run(take()) for name, value in bytes_of(bucket).items()}


def bytes_of(bucket: WeightBucket) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in zip(bucket.names, bucket.arrays, strict=True)}


def words(dtype: type, size: int, seed: int) -> np.ndarray:
    """Random bits: NaNs of all payloads, infinities, both zeros and denormals are among them."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)


def apply_slowly(changes: Changes, kept: np.ndarray) -> np.ndarray:
    result, index = kept.copy(), 0
    for block, count in enumerate(changes.counts.tolist()):
        for _ in range(count):
            result[block * changes.block + int(changes.offsets[index])] = changes.values[index]
            index += 1
    assert index == len(changes.values)
    return result


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65536, 200_000])
@pytest.mark.parametrize("share", [0, 0.0005, 0.01, 0.3, 1])
def test_changes_give_the_new_values_bit_for_bit_as_a_slow_loop_does(dtype: type, size: int, share: float) -> None:
    old, others = words(dtype, size, 0), words(dtype, size, 1)
    new = np.where(np.random.default_rng(2).random(size) < share, others, old)
    changes = changes_at(np.flatnonzero(old != new), old, new)
    np.testing.assert_array_equal(apply_slowly(changes, old), new)
    apply_changes(changes, old, "w")
    np.testing.assert_array_equal(old, new)


def test_few_changes_take_two_bytes_of_position_each_and_many_take_one() -> None:
    old = np.zeros(2**20, np.uint16)
    few, many = (changes_at(np.arange(0, old.size, gap), old, old + 1) for gap in (1000, 30))
    assert (few.offsets.itemsize, few.counts.nbytes) == (2, 16 * 4)
    assert (many.offsets.itemsize, many.counts.nbytes) == (1, 4096 * 2)


@pytest.mark.parametrize("damage", ["values", "offsets", "counts", "block", "base", "cut", "beyond"])
def test_damaged_changes_and_those_of_other_values_are_refused_and_change_nothing(damage: str) -> None:
    old = np.full(1000, 7, np.uint16)  # as of a layer norm: of the old values none says where it stands
    new = old.copy()
    new[::10] += 1
    changes = changes_at(np.flatnonzero(old != new), old, new)
    if damage == "base":
        old[500] ^= 1
    elif damage == "block":
        changes = dataclasses.replace(changes, block=changes.block - 1)
    elif damage == "cut":
        changes = dataclasses.replace(changes, values=changes.values[:-1])
    elif damage == "beyond":
        old = old[:900]
    else:
        array = getattr(changes, damage).copy()
        array[3] ^= 1
        changes = dataclasses.replace(changes, **{damage: array})
    before = old.copy()
    with pytest.raises(UnfitDeltaError, match=r"'layer\.weight'"):
        apply_changes(changes, old, "layer.weight")
    np.testing.assert_array_equal(old, before)


def special() -> torch.Tensor:
    bits = torch.tensor([0x7FC0, 0x7FC1, 0x0000, -0x8000, 0x0001, 0x7F80] * 100, dtype=torch.int16)
    return bits.view(torch.bfloat16)


def tensors(step: int) -> Sequence[tuple[str, torch.Tensor]]:
    """Of a step: some change in few values, one in all, one in none; one from 0 to -0, one in a NaN's payload."""
    generator = torch.Generator().manual_seed(0)
    sparse, single = torch.randn(300, 300, generator=generator), torch.randn(5000, generator=generator)
    sparse[::50] += step
    single[step] = -1.0
    zeros = special()
    zeros.view(torch.int16)[6 * step] ^= 1  # a NaN's payload
    zeros.view(torch.int16)[6 * step + 2] ^= -0x8000  # the sign of a zero
    return [
        ("sparse", sparse.bfloat16()),
        ("single", single),
        ("all", torch.full((1000,), float(step)).bfloat16()),
        ("none", torch.ones(7).bfloat16()),
        ("special", zeros),
        ("empty", torch.zeros(0, 3)),
    ]


def test_a_replica_that_follows_changes_is_the_learners_version_bit_for_bit() -> None:
    encoder, replica, base = DeltaEncoder(), WeightReplica(), None
    for step in (1, 2, 3, 4):
        version = WeightVersion(0, step)
        whole = [pack_bucket(tensors(step)[:2]), pack_bucket(tensors(step)[2:])]
        sent = list(encoder.encode(version, base, whole))
        assert all(isinstance(each, WeightBucket if step == 1 else DeltaBucket) for each in sent)
        assert follow(replica, version, sent) == bytes_of(whole[0]) | bytes_of(whole[1])
        assert replica.version == version
        base = version
    summary = encoder.summary
    before, after = tensors(3), tensors(4)
    differ = sum(
        (old.reshape(-1).view(torch.uint8) != new.reshape(-1).view(torch.uint8))
        .reshape(-1, old.element_size())
        .any(1)
        .sum()
        for (_, old), (_, new) in zip(before, after, strict=True)
    )
    assert (summary.is_whole, summary.num_changed) == (False, differ)
    assert summary.num_values == sum(tensor.numel() for _, tensor in after)
    # "all" went whole: its positions would take more than half of it again.
    assert [type(bucket.contents[0]) for bucket in sent] == [Changes, np.ndarray]
    assert summary.num_bytes < 0.2 * sum(tensor.nbytes for _, tensor in after)


def test_changes_of_another_version_than_is_held_are_refused_and_the_replica_then_holds_none() -> None:
    encoder, replica = DeltaEncoder(), WeightReplica()
    first = list(encoder.encode(FIRST, None, [pack_bucket(tensors(1))]))
    follow(replica, FIRST, first)
    list(encoder.encode(SECOND, FIRST, [pack_bucket(tensors(2))]))  # missed
    third = list(encoder.encode(THIRD, SECOND, [pack_bucket(tensors(3))]))
    with pytest.raises(UnfitDeltaError, match=r"number=2\).*number=1\)"):
        follow(replica, THIRD, third)
    assert replica.version is None
    with pytest.raises(UnfitDeltaError, match="None is held"):  # one that was just started
        follow(WeightReplica(), THIRD, third)


def test_an_export_that_was_broken_off_is_followed_by_a_whole_one() -> None:
    encoder = DeltaEncoder()
    list(encoder.encode(FIRST, None, [pack_bucket(tensors(1))]))
    buckets = [pack_bucket(tensors(2)[:2]), pack_bucket(tensors(2)[2:])]
    next(encoder.encode(SECOND, FIRST, buckets))
    (sent,) = encoder.encode(SECOND, FIRST, [pack_bucket(tensors(2))])
    assert isinstance(sent, WeightBucket)
    assert encoder.summary.is_whole


def test_a_bucket_that_was_applied_is_let_go_before_the_next_one_is_there() -> None:
    replica, arrived = WeightReplica(), []

    async def buckets() -> AsyncIterator[WeightBucket]:
        for name in ("a", "b"):
            assert all(array() is None for array in arrived), "one is held while the next is waited for"
            waiting = [pack_bucket([(name, torch.ones(10))])]
            arrived.append(weakref.ref(waiting[0].arrays[0]))
            yield waiting.pop()

    async def take() -> list[tuple[str, ...]]:
        return [bucket.names async for bucket in replica.follow(FIRST, buckets())]

    assert asyncio.run(take()) == [("a",), ("b",)]
