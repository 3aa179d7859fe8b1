"""Buckets that are told of while the learner still exports them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from configs.errors import WeightSyncError
from rollout.records import WeightVersion
from rollout.weights.arriving import ArrivingVersion


def here(value: str) -> Any:
    """A reference to something that has come."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


async def taken(arriving: ArrivingVersion) -> list[Any]:
    return [bucket async for bucket in arriving.buckets()]


async def test_buckets_are_given_out_before_the_last_one_is_known() -> None:
    arriving = ArrivingVersion(WeightVersion(0, 1), patience_s=5)
    a, b, c = map(here, "abc")
    arriving.told(0, [a])
    arriving.told(1, [b])
    buckets = arriving.buckets()
    assert [await anext(buckets), await anext(buckets)] == ["a", "b"]
    third = asyncio.ensure_future(anext(buckets))
    await asyncio.sleep(0)
    assert not third.done()
    arriving.told_all([a, b, c])
    assert await third == "c"
    with pytest.raises(StopAsyncIteration):
        await anext(buckets)


@pytest.mark.parametrize("known", [(), (0,), (0, 2), (1,), (0, 1), (0, 0, 1, 2)])
async def test_whatever_was_told_before_all_buckets_come_once_and_in_order(known: tuple[int, ...]) -> None:
    arriving = ArrivingVersion(WeightVersion(0, 1), patience_s=5)
    references = [here(value) for value in "abc"]
    taking = asyncio.ensure_future(taken(arriving))
    for number in known:
        arriving.told(number, references[number : number + 1])
        await asyncio.sleep(0)
    arriving.told_all(references)
    arriving.told(3, [here("d")])  # a hint that was overtaken
    assert await taking == ["a", "b", "c"]


async def test_a_version_without_buckets_ends_at_once() -> None:
    arriving = ArrivingVersion(WeightVersion(0, 1), patience_s=5)
    arriving.told_all([])
    assert await taken(arriving) == []


async def test_a_version_that_is_given_up_or_told_no_further_is_an_error() -> None:
    arriving = ArrivingVersion(WeightVersion(0, 7), patience_s=5)
    arriving.told(0, [here("a")])
    taking = asyncio.ensure_future(taken(arriving))
    await asyncio.sleep(0)
    arriving.give_up()
    with pytest.raises(WeightSyncError, match="weight version 7 was given up while it was exported"):
        await taking
    silent = ArrivingVersion(WeightVersion(0, 8), patience_s=0.05)
    silent.told(0, [here("a")])
    with pytest.raises(WeightSyncError, match=r"bucket 2 of the weights did not come for 0\.05 s"):
        await taken(silent)
