"""Reward pools and the roller on replicas of this process: who is asked again, who has to go, what a failure costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayTaskError

from cluster.actors.score_cache import RewardAnswer
from cluster.benchmarks.local_actors import LocalActor
from cluster.groups import GroupRoller, RewardPools
from cluster.groups.roller import GroupGivenUpError
from cluster.groups.scoring import BATCHES_PER_REPLICA
from cluster.groups.trust import MAX_ALONE, MAX_REFUTED, Trust
from cluster.pools import ActorPool, Patience, PoolHooks
from configs.errors import RewardBrokenError, RewardError
from configs.schema import RewardConfig
from rewards.calling import Answer
from rewards.combine import Combined
from rollout.records import GroupRequest, GroupRollout, Prompt, Score
from tests.records import make_trajectory

WAIT_S = 10.0
NUM_PICTURES = 4
PROMPT = Prompt("prompts.txt:1", "a red star")
FAILED = RewardError("reward 'taste' failed on prompts.txt:1: no luck")
Behave = Callable[[int, Sequence[int]], Sequence[Answer]]
"""(number of the call, places of its pictures) -> answers."""


def good(call: int, places: Sequence[int]) -> list[Answer]:
    return [Score(0.1 * place) for place in places]


def bad(call: int, places: Sequence[int]) -> list[Answer]:
    return [FAILED for _ in places]


def broken(call: int, places: Sequence[int]) -> list[Answer]:
    raise RayTaskError("score", "traceback", RewardBrokenError("CUDA error: an illegal memory access"))


def bad_at(*bad_places: int) -> Behave:
    return lambda call, places: [FAILED if place in bad_places else Score(0.1 * place) for place in places]


@dataclass(slots=True)
class Replica:
    """Answers as it is told to; also rolls groups, for the roller."""

    behave: Behave
    calls: list[list[int]] = field(default_factory=list)
    plans: list[Any] = field(default_factory=list)

    async def start(self) -> None:
        return None

    async def ping(self) -> str:
        return "here"

    async def score(self, pictures: Any, prompts: Sequence[Prompt], plans: Any, only: Any) -> RewardAnswer:
        places = list(range(len(prompts))) if only is None else list(only)
        self.calls.append(places)
        self.plans.append(plans)
        await asyncio.sleep(0)
        return RewardAnswer(list(self.behave(len(self.calls) - 1, places)))

    async def roll_group(self, request: GroupRequest) -> tuple[GroupRollout, Any]:
        self.calls.append([])
        return GroupRollout(request, (make_trajectory(),) * request.group_size, "rollout-0", 0.0, 1.0), "pictures"

    async def close(self) -> None:
        return None


@dataclass(slots=True)
class Scene:
    """Replicas of one reward in the order of their birth, which behave as `behaviours` say; the last one repeats."""

    behaviours: Sequence[Behave]
    replicas: list[Replica] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def pools(self, *rewards: RewardConfig, num_replicas: int = 2, **fields: Any) -> RewardPools:
        rewards = rewards or (RewardConfig(name="taste", kind="shapes", replicas=num_replicas, **fields),)  # type: ignore[arg-type]
        return RewardPools(rewards, NUM_PICTURES, "run", self.hooks, Patience())

    def hooks(self, spawn: Any, start: Any) -> PoolHooks:
        async def on_change(worker_id: str, state: str) -> None:
            return None

        return PoolHooks(
            spawn=self._spawn, start=start, on_change=on_change, note=self.notes.append, end=LocalActor.kill
        )

    def _spawn(self, worker_id: str) -> Any:
        self.replicas.append(Replica(self.behaviours[min(len(self.replicas), len(self.behaviours) - 1)]))
        return LocalActor(self.replicas[-1])


async def score(pools: RewardPools, plans: Sequence[str] | None = None, **more: Any) -> Combined:
    return await asyncio.wait_for(pools.score("pictures", PROMPT, NUM_PICTURES, plans, **more), WAIT_S)


def run(scenario: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario(), 2 * WAIT_S))


def test_pictures_that_one_replica_fails_are_scored_by_another_and_only_these() -> None:
    scene = Scene([bad_at(1, 3), good])

    async def scenario() -> None:
        pools = scene.pools(retries=1)
        await pools.start()
        combined = await score(pools)
        np.testing.assert_allclose(combined.rewards, [0.0, 0.1, 0.2, 0.3], atol=1e-6)
        await pools.close()

    run(scenario)
    assert [replica.calls for replica in scene.replicas] == [[[0, 1, 2, 3]], [[1, 3]]]


def test_a_replica_that_fails_for_ever_is_taken_out_and_no_group_is_lost() -> None:
    scene = Scene([bad, good])

    async def scenario() -> None:
        pools = scene.pools(retries=0)
        await pools.start()
        results = await asyncio.gather(*(score(pools) for _ in range(64)))
        assert all(np.isfinite(combined.rewards).all() for combined in results)
        assert pools.num_lost == 1
        await pools.close()

    run(scenario)
    at_once = BATCHES_PER_REPLICA * 32 // NUM_PICTURES
    assert len(scene.replicas[0].calls) <= 2 * at_once + MAX_REFUTED
    assert scene.notes == ["reward-taste-0 failed 3 times at what others scored; starting another in its place"]


def test_a_replica_whose_gpu_is_lost_is_replaced_at_once() -> None:
    scene = Scene([broken, good])

    async def scenario() -> None:
        pools = scene.pools(retries=1)
        await pools.start()
        results = await asyncio.gather(*(score(pools) for _ in range(64)))
        assert all(np.isfinite(combined.rewards).all() for combined in results)
        assert pools.num_lost == 1
        await pools.close()

    run(scenario)


def test_pictures_that_all_replicas_fail_are_the_pictures_fault() -> None:
    scene = Scene([bad_at(2), bad_at(2)])

    async def scenario() -> None:
        pools = scene.pools(retries=2)
        await pools.start()
        for _ in range(10):
            combined = await score(pools)
            np.testing.assert_allclose(combined.rewards, [0.0, 0.1, np.nan, 0.3], atol=1e-6)
            assert combined.errors == {2: FAILED}
        assert pools.num_lost == 0
        await pools.close()

    run(scenario)
    assert scene.notes == []


def test_a_group_of_which_one_picture_is_left_has_failed() -> None:
    scene = Scene([bad_at(0, 1, 2)])

    async def scenario() -> None:
        pools = scene.pools(num_replicas=1)
        await pools.start()
        with pytest.raises(RewardError, match="no luck"):
            await score(pools)
        await pools.close()

    run(scenario)


def test_the_only_replica_goes_when_it_can_no_more_what_it_could() -> None:
    scene = Scene([lambda call, places: good(call, places) if call == 0 else bad(call, places), bad])

    async def scenario() -> None:
        pools = scene.pools(num_replicas=1, retries=0)
        await pools.start()
        await score(pools)
        for _ in range(30):
            with pytest.raises(RewardError):
                await score(pools)
        assert pools.num_lost == 1, "its successor has never scored anything: it may be the reward"
        await pools.close()

    run(scenario)
    assert len(scene.replicas[0].calls) == 1 + MAX_ALONE


def test_watched_and_evaluation_rewards_have_no_say_and_the_latter_no_call_in_training() -> None:
    scene = Scene([good, bad, good])
    rewards = (
        RewardConfig(name="taste", kind="shapes"),
        RewardConfig(name="watched", kind="shapes", weight=0.0, retries=0),
        RewardConfig(name="measured", kind="shapes", weight=5.0, evaluation_only=True),
    )

    async def scenario() -> tuple[Combined, Combined]:
        pools = scene.pools(*rewards)
        await pools.start()
        results = await score(pools, ["plan"] * 4), await score(pools, is_evaluation=True)
        await pools.close()
        return results

    training, evaluation = run(scenario)
    for combined in (training, evaluation):
        np.testing.assert_allclose(combined.rewards, [0.0, 0.1, 0.2, 0.3], atol=1e-6)
    assert set(training.columns) == {"taste", "watched"}
    assert set(evaluation.columns) == {"taste", "watched", "measured"}
    assert len(scene.replicas[2].calls) == 1
    assert scene.replicas[0].plans == [["plan"] * 4, None]


def roll(behave: Behave, max_attempts: int = 3) -> tuple[Any, list[str], int]:
    """What comes of rolling one group, what failures were told, and how often it was drawn."""
    rewards, rollouts = Scene([behave]), Scene([good])
    failures: list[str] = []

    async def on_failure(request: GroupRequest, reason: str) -> None:
        failures.append(reason)

    async def start(handle: Any) -> None:
        return None

    async def scenario() -> Any:
        pools = rewards.pools(num_replicas=1, retries=0)
        pool = ActorPool("rollout", 1, 4, rollouts.hooks(None, start), Patience())
        await asyncio.gather(pools.start(), pool.start())
        roller = GroupRoller(pool, pools, max_attempts, WAIT_S, on_failure, score_again_s=0.001)
        try:
            return await roller.roll(GroupRequest(0, 0, PROMPT, NUM_PICTURES, 1, 7))
        except GroupGivenUpError as error:
            return error
        finally:
            await asyncio.gather(pools.close(), pool.close())

    return run(scenario), failures, len(rollouts.replicas[0].calls)


def test_a_failed_score_is_scored_again_and_the_group_not_drawn_again() -> None:
    rolled, failures, num_drawn = roll(lambda call, places: bad(call, places) if call < 2 else good(call, places))
    np.testing.assert_allclose(rolled.scored.rewards, [0.0, 0.1, 0.2, 0.3], atol=1e-6)
    assert (failures, num_drawn) == ([str(FAILED)] * 2, 1)


def test_a_group_that_cannot_be_scored_is_given_up_after_one_draw() -> None:
    error, failures, num_drawn = roll(bad)
    assert isinstance(error, GroupGivenUpError)
    assert str(error) == f"prompt prompts.txt:1 could not be scored 3 times, at last because: {FAILED}"
    assert (len(failures), num_drawn) == (3, 1)


def test_a_prompt_to_which_no_reward_applies_is_given_up_at_once() -> None:
    error, failures, num_drawn = roll(lambda call, places: [Score(None) for _ in places])
    assert isinstance(error, GroupGivenUpError)
    assert "none of the rewards taste applies" in str(error)
    assert (failures, num_drawn) == ([], 1)


def test_a_group_goes_on_without_the_picture_that_could_not_be_scored() -> None:
    rolled, failures, _ = roll(bad_at(1))
    np.testing.assert_allclose(rolled.scored.rewards, [0.0, np.nan, 0.2, 0.3], atol=1e-6)
    assert rolled.has_spread
    assert failures == []


def test_trust_is_lost_by_what_others_refute_and_won_back_by_a_score() -> None:
    trust = Trust()
    for _ in range(MAX_REFUTED - 1):
        assert trust.succeeded("b", after=["a"]) == []
    assert trust.succeeded("a", after=[]) == []
    for _ in range(MAX_REFUTED - 1):
        assert trust.succeeded("b", after=["a"]) == []
    assert trust.succeeded("b", after=["a"]) == ["a"]
    assert not any(trust.failed("c", is_alone=True) for _ in range(100)), "it has never scored anything"
