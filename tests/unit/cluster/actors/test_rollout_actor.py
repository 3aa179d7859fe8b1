"""A rollout worker never goes back to older weights, whatever arrives late."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from cluster.actors import RolloutActor
from configs.errors import RolloutError, WeightSyncError
from configs.schema import RunConfig
from rollout.records import BucketStream, WeightVersion
from rollout.weights.buckets import each_bucket, pack_bucket
from rollout.weights.delta import Changes, DeltaBucket, DeltaEncoder


class Engine:
    """Remembers which versions it loaded."""

    is_usable = True

    def __init__(self) -> None:
        self.loaded: list[int] = []

    async def update_weights(self, version: int, buckets: BucketStream) -> None:
        async for _ in each_bucket(buckets):
            pass
        self.loaded.append(version)


CONFIG = RunConfig.model_validate(
    {
        "model": {"path": "janus", "dtype": "float32"},
        "data": {"train": "prompts.txt"},
        "rewards": [{"name": "shapes"}],
        "weight_sync": {"timeout_s": 0.2},
    }
)


def actor_with(engine: Engine) -> RolloutActor:
    actor = RolloutActor(CONFIG, "~/model", "rollout-0")
    actor._worker = cast(Any, engine)
    return actor


async def test_a_version_of_an_earlier_life_does_not_replace_one_of_a_later_life() -> None:
    engine = Engine()
    actor = actor_with(engine)
    slow: Any = asyncio.get_running_loop().create_future()  # a bucket that is long on its way
    late = asyncio.create_task(actor.update_weights(WeightVersion(0, 11), [slow]))
    await asyncio.sleep(0)
    restored = asyncio.create_task(actor.update_weights(WeightVersion(1, 8), []))
    await asyncio.sleep(0)
    slow.set_result(None)
    assert await late == WeightVersion(0, 11)
    assert await restored == WeightVersion(1, 8)
    assert engine.loaded == [11, 8]
    assert await actor.update_weights(WeightVersion(0, 12), []) == WeightVersion(1, 8)
    assert await actor.update_weights(WeightVersion(1, 8), []) == WeightVersion(1, 8)
    assert await actor.update_weights(WeightVersion(1, 9), []) == WeightVersion(1, 9)
    assert engine.loaded == [11, 8, 9]


async def test_a_version_of_which_nothing_comes_does_not_keep_the_next_one_out() -> None:
    engine = Engine()
    actor = actor_with(engine)
    came: Any = asyncio.get_running_loop().create_future()
    came.set_result(None)
    never: Any = asyncio.get_running_loop().create_future()
    stuck = asyncio.create_task(actor.update_weights(WeightVersion(0, 1), [came, never]))
    await asyncio.sleep(0)
    after = asyncio.create_task(actor.update_weights(WeightVersion(0, 2), [came]))
    with pytest.raises(WeightSyncError, match=r"bucket 2 of 2 of the weights did not come for 0\.2 s"):
        await stuck
    assert await after == WeightVersion(0, 2)
    assert engine.loaded == [2]


def told(value: Any = None) -> Any:
    came: Any = asyncio.get_running_loop().create_future()
    came.set_result(value)
    return came


async def test_buckets_are_loaded_while_the_learner_exports_the_next_ones() -> None:
    seen: list[int] = []

    class Counting(Engine):
        async def update_weights(self, version: int, buckets: BucketStream) -> None:
            async for bucket in each_bucket(buckets):
                seen.append(cast(int, bucket))  # noqa: PERF401  one by one
            self.loaded.append(version)

    engine, version = Counting(), WeightVersion(0, 1)
    actor = actor_with(engine)
    references = [told(number) for number in range(3)]
    await actor.expect_weights(version, 0, references[:2])
    async with asyncio.timeout(5):
        while len(seen) < 2:
            await asyncio.sleep(0)
    assert not engine.loaded
    assert await actor.update_weights(version, references) == version
    assert (seen, engine.loaded) == ([0, 1, 2], [1])
    await actor.expect_weights(version, 0, references)  # a hint that was overtaken
    assert await actor.update_weights(version, references) == version
    assert engine.loaded == [1]


async def test_a_version_whose_learner_died_while_it_was_exported_makes_way_for_the_next_life() -> None:
    engine = Engine()
    actor = actor_with(engine)
    await actor.expect_weights(WeightVersion(0, 7), 0, [told()])
    await asyncio.sleep(0)
    async with asyncio.timeout(0.15):  # less than weight_sync.timeout_s
        assert await actor.update_weights(WeightVersion(1, 5), [told()]) == WeightVersion(1, 5)
    assert engine.loaded == [5]


async def test_an_older_version_does_not_break_off_one_that_arrives() -> None:
    engine = Engine()
    actor = actor_with(engine)
    await actor.expect_weights(WeightVersion(0, 2), 0, [told()])
    await asyncio.sleep(0)
    older = asyncio.create_task(actor.update_weights(WeightVersion(0, 1), [told()]))
    await asyncio.sleep(0)
    assert await actor.update_weights(WeightVersion(0, 2), [told(), told()]) == WeightVersion(0, 2)
    assert await older == WeightVersion(0, 2)
    assert engine.loaded == [2]


async def test_the_first_version_of_a_new_worker_is_loaded_even_when_it_is_version_0() -> None:
    engine = Engine()
    assert await actor_with(engine).update_weights(WeightVersion(0, 0), []) == WeightVersion(0, 0)
    assert engine.loaded == [0]


async def test_a_worker_that_has_not_been_started_says_so() -> None:
    actor = RolloutActor(CONFIG, "~/model", "rollout-3")
    with pytest.raises(RolloutError, match="rollout-3 has not been started"):
        await actor.update_weights(WeightVersion(0, 1), [])


class Bucket:
    """Knows how many of its kind are alive."""

    alive = most = 0

    def __init__(self) -> None:
        Bucket.alive += 1
        Bucket.most = max(Bucket.most, Bucket.alive)

    def __del__(self) -> None:
        Bucket.alive -= 1


class Reference:
    """Of a bucket that is made when somebody asks for it."""

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return Bucket()


async def test_a_version_of_many_buckets_is_never_held_whole() -> None:
    references: Any = [Reference() for _ in range(20)]
    await actor_with(Engine()).update_weights(WeightVersion(0, 1), references)
    assert 1 <= Bucket.most <= 5
    assert Bucket.alive == 0


async def test_changes_of_a_version_that_a_worker_does_not_hold_are_not_begun_and_then_fetched_with_all_before() -> (
    None
):
    def sent(bucket: Any) -> Any:
        future: Any = asyncio.get_running_loop().create_future()
        future.set_result(bucket)
        return future

    engine = Engine()
    config = CONFIG.model_copy(update={"weight_sync": CONFIG.weight_sync.model_copy(update={"delta": True})})
    actor = RolloutActor(config, "~/model", "rollout-0")
    actor._worker = cast(Any, engine)
    encoder, weight = DeltaEncoder(), torch.zeros(100)
    versions, buckets = [WeightVersion(0, number) for number in (1, 2, 3)], []
    for number, version in enumerate(versions):
        weight[number] = 1
        base = versions[number - 1] if number else None
        buckets += encoder.encode(version, base, [pack_bucket([("w", weight)])])
    await actor.expect_weights(versions[2], 0, [sent(buckets[2])], versions[1])
    assert actor._arriving is None
    earlier = [(version, [sent(bucket)]) for version, bucket in zip(versions[:2], buckets[:2], strict=True)]
    assert await actor.update_weights(versions[2], [sent(buckets[2])], earlier) == versions[2]
    assert engine.loaded == [3]
    assert actor._replica is not None
    assert actor._replica.version == versions[2]
    assert actor._replica._kept["w"].tobytes() == weight.numpy().tobytes()


async def test_a_version_that_was_begun_with_damaged_changes_is_loaded_when_it_comes_again_whole() -> None:
    """It was told of the changes early, was out of sight when the others found them damaged, and is told of the whole
    version now."""
    engine, weight, encoder = Engine(), torch.zeros(100), DeltaEncoder()
    config = CONFIG.model_copy(update={"weight_sync": CONFIG.weight_sync.model_copy(update={"delta": True})})
    actor = RolloutActor(config, "~/model", "rollout-0")
    actor._worker = cast(Any, engine)
    first, second = WeightVersion(0, 1), WeightVersion(0, 2)
    (whole,) = encoder.encode(first, None, [pack_bucket([("w", weight)])])
    assert await actor.update_weights(first, [told(whole)]) == first
    weight[5] = 1
    (changed,) = encoder.encode(second, first, [pack_bucket([("w", weight)])])
    assert isinstance(changed, DeltaBucket)
    (changes,) = changed.contents
    assert isinstance(changes, Changes)
    damaged = replace(changed, contents=(replace(changes, values=changes.values ^ 1),))
    await actor.expect_weights(second, 0, [told(damaged)], first)
    assert await actor.update_weights(second, [told(pack_bucket([("w", weight)]))]) == second
    assert actor._replica is not None
    assert actor._replica._kept["w"].tobytes() == weight.numpy().tobytes()
