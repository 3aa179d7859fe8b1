"""Pictures that go with the node that drew them cost a re-roll, and samples that lack them; never the run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ObjectLostError, ObjectReconstructionFailedError, OutOfMemoryError, RayTaskError

from cluster.actors.score_cache import RewardAnswer
from cluster.benchmarks.local_actors import LocalActor
from cluster.groups import GroupRoller, RewardPools
from cluster.groups.roller import GroupGivenUpError, RolledGroup
from cluster.pools import ActorPool, PoolHooks
from cluster.reports.run_log import first_samples, samples_of
from configs.schema import RewardConfig
from rollout.records import GroupRequest, GroupRollout, Prompt, Score, UInt8Array
from tests.records import make_request, make_scored_group, make_trajectory

WAIT_S = 10.0
LOST = ObjectReconstructionFailedError("ab", None, "")


def task_error(cause: Exception) -> Exception:
    error: Exception = RayTaskError("score", "ray::score() (pid=1, ip=10.0.0.7)", cause).as_instanceof_cause()
    return error


class Rollout:
    """Draws grey pictures."""

    async def ping(self) -> str:
        return "node"

    async def roll_group(self, request: GroupRequest) -> tuple[GroupRollout, UInt8Array]:
        trajectories = (make_trajectory(),) * request.group_size
        return GroupRollout(request, trajectories, "rollout-0", 0.0, 1.0), np.zeros((2, 8, 8, 3), np.uint8)


class Reward:
    """Raises what it is told to, one error a call, and scores when there are none left."""

    def __init__(self, errors: list[Exception]) -> None:
        self.errors = errors

    async def ping(self) -> str:
        return "node"

    async def start(self) -> None:
        return None

    async def score(self, pictures: Any, prompts: list[Prompt], plans: Any, only: Any) -> RewardAnswer:
        await pictures
        if self.errors:
            raise self.errors.pop(0)
        return RewardAnswer([Score(float(index)) for index in range(len(prompts))])


def hooks(spawn: Callable[[str], Any], start: Callable[[Any], Any]) -> PoolHooks:
    async def on_change(worker_id: str, state: str) -> None:
        return None

    return PoolHooks(spawn=spawn, start=start, on_change=on_change, note=lambda text: None, end=LocalActor.kill)


async def roll(
    errors: list[Exception], monkeypatch: pytest.MonkeyPatch, max_attempts: int = 3
) -> tuple[RolledGroup, list[str], int]:
    """Roll one group with a reward that raises `errors`; what came, why attempts failed, and replicas lost."""
    monkeypatch.setattr("cluster.groups.scoring.spawn", lambda *args, **kwargs: LocalActor(Reward(errors)))
    monkeypatch.setattr("cluster.pools.losses.Losses.pause_s", 0.0)
    reasons: list[str] = []

    async def failed(request: GroupRequest, reason: str) -> None:
        reasons.append(reason)

    async def start(handle: Any) -> None:
        return None

    rollouts = ActorPool("rollout", 1, 2, hooks(lambda worker_id: LocalActor(Rollout()), start))
    rewards = RewardPools((RewardConfig(name="my:Reward", retries=0),), 2, "run", hooks, rollouts.patience)
    try:
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(rollouts.start(), rewards.start())
            roller = GroupRoller(rollouts, rewards, max_attempts, WAIT_S, failed, score_again_s=0.01)
            return await roller.roll(make_request()), reasons, rewards.num_lost
    finally:
        await asyncio.gather(rollouts.close(), rewards.close())


async def test_lost_pictures_are_rolled_again_and_no_replica_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    rolled, reasons, num_lost = await roll([task_error(LOST), LOST], monkeypatch)
    assert rolled.scored.rollout.request.attempt == 2
    assert all("what it was given or has answered is lost with its node" in reason for reason in reasons)
    assert num_lost == 0


@pytest.mark.parametrize(
    ("error", "num_lost"),
    [
        (OutOfMemoryError("2 worker(s) were killed due to the node running low on memory"), 1),
        (task_error(TypeError("Score.__init__() got an unexpected keyword argument")), 0),
        (task_error(TimeoutError("of a library")), 0),
        (task_error(StopAsyncIteration()), 0),
    ],
)
async def test_any_accident_of_a_reward_costs_a_try_at_scoring_and_neither_a_roll_nor_the_run(
    error: Exception, num_lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolled, reasons, lost = await roll([error], monkeypatch)
    assert rolled.scored.rollout.request.attempt == 0
    assert len(reasons) == 1
    assert "my:Reward" in reasons[0]
    assert lost == num_lost


async def test_what_fails_at_every_attempt_is_given_up_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [task_error(ValueError("always"))] * 3
    with pytest.raises(
        GroupGivenUpError, match=r"could not be scored 3 times.*my:Reward.*ValueError: always \(on node 10"
    ):
        await roll(list(errors), monkeypatch)


class Pictures:
    """A reference to pictures, or to what was lost."""

    def __init__(self, found: UInt8Array | Exception) -> None:
        self.found = found

    def __await__(self) -> Generator[Any, None, UInt8Array]:
        yield from asyncio.sleep(0).__await__()
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


async def test_samples_are_drawn_of_the_groups_whose_pictures_are_there() -> None:
    grey = np.full((2, 8, 8, 3), 128, np.uint8)
    rolled = [
        RolledGroup(make_scored_group(0), Pictures(ObjectLostError("ab", None, ""))),
        RolledGroup(make_scored_group(1), Pictures(grey)),
        RolledGroup(make_scored_group(2), Pictures(LOST)),
        RolledGroup(make_scored_group(3), Pictures(grey)),
    ]
    assert len(await samples_of(rolled, 4)) == 2
    assert list(await first_samples(rolled)) == [1, 3]
    assert await samples_of(rolled[:1], 4) == []


async def test_pictures_that_never_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.reports.run_log.FETCH_TIMEOUT_S", 0.01)
    never: Any = asyncio.get_running_loop().create_future()
    assert await asyncio.wait_for(samples_of([RolledGroup(make_scored_group(0), never)], 4), WAIT_S) == []
