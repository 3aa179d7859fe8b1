"""The reward pools on real Ray: whatever a replica does, a group gets its scores or an error by name, in time."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cluster.groups import RewardPools
from cluster.pools import Patience, PoolHooks
from cluster.session import PrivateRedis
from configs.errors import RewardError
from configs.schema import RewardConfig
from rewards.combine import Combined
from rollout.records import Prompt

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(120)]

WAIT_S = 60.0
FAULTY = "tests.integration.rewards:FaultyReward"
PROMPT = Prompt(prompt_id="prompts.txt:1", text="a red star")
LEVELS = (51, 102)
BRIGHTNESS = [0.2, 0.4]


@asynccontextmanager
async def pools_of(
    folder: Path, notes: list[str], fault: str = "", cache_url: str | None = None, **fields: Any
) -> AsyncIterator[RewardPools]:
    """The pool of one faulty reward."""

    async def on_change(worker_id: str, state: str) -> None:
        pass

    def hooks(spawn: Any, start: Any) -> PoolHooks:
        return PoolHooks(spawn=spawn, start=start, on_change=on_change, note=notes.append)

    options: Mapping[str, Any] = {"fault": fault, "folder": str(folder)}
    reward = RewardConfig(name=FAULTY, options=options, cpus_per_replica=0.1, max_wait_ms=0, **fields)
    pools = RewardPools((reward,), 2, folder.name, hooks, Patience(heartbeat_s=0.5, heartbeat_timeout_s=20), cache_url)
    try:
        await asyncio.wait_for(pools.start(), WAIT_S)
        yield pools
    finally:
        await pools.close()


async def score(pools: RewardPools) -> Combined:
    pictures = ray.put(np.array(LEVELS, np.uint8)[:, None, None, None] * np.ones((2, 4, 4, 3), np.uint8))
    return await asyncio.wait_for(pools.score(pictures, PROMPT, 2), WAIT_S)


def calls(folder: Path) -> list[list[str]]:
    """(process id, FAULTY_NOTE) of every call of the reward."""
    return [line.split(" ") for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("raise", "RuntimeError: no luck"), ("nan", "a finite number, not nan"), ("short", "returned 1 scores for 2")],
)
async def test_a_reward_that_misbehaves_fails_the_group_by_name(tmp_path: Path, fault: str, message: str) -> None:
    async with pools_of(tmp_path, [], fault, retries=0) as pools:
        with pytest.raises(RewardError, match=f"reward '{FAULTY}' failed on prompts.txt:1: .*{message}"):
            await score(pools)
        assert pools.num_lost == 0


async def test_a_replica_killed_in_the_middle_of_a_batch_is_replaced_and_the_batch_scored_elsewhere(
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    async with pools_of(tmp_path, notes, "hang once", replicas=2) as pools:
        scoring = asyncio.create_task(score(pools))
        async with asyncio.timeout(WAIT_S):
            while not (tmp_path / "hangs").exists() or not (tmp_path / "hangs").read_text():
                await asyncio.sleep(0.01)
        os.kill(int((tmp_path / "hangs").read_text()), signal.SIGKILL)
        combined = await scoring
        np.testing.assert_allclose(combined.rewards, BRIGHTNESS)
        assert len({process for process, _ in calls(tmp_path)}) == 2
        assert pools.num_lost == 1
    assert any("died" in note and "starting another in its place" in note for note in notes)


async def test_a_replica_whose_reward_hangs_is_replaced_and_the_batch_scored_elsewhere(tmp_path: Path) -> None:
    notes: list[str] = []
    async with pools_of(tmp_path, notes, "hang once", replicas=1, timeout_s=0.5) as pools:
        np.testing.assert_allclose((await score(pools)).rewards, BRIGHTNESS)
        assert len({process for process, _ in calls(tmp_path)}) == 2
    told = [note for note in notes if "no answer within timeout_s (0.5 s)" in note]
    assert len(told) == 1
    assert "starting another in its place" in told[0]


async def test_a_reward_that_always_hangs_fails_the_group_by_name(tmp_path: Path) -> None:
    async with pools_of(tmp_path, [], "hang", replicas=2, timeout_s=0.5, retries=1) as pools:
        with pytest.raises(RewardError, match=f"reward '{FAULTY}' lost 2 replicas on one group: .*no answer within"):
            await score(pools)


async def test_a_reward_has_the_environment_that_its_config_gives_it(tmp_path: Path) -> None:
    runtime_env = {"env_vars": {"FAULTY_NOTE": "mine"}}
    async with pools_of(tmp_path, [], runtime_env=runtime_env) as pools:
        await score(pools)
    assert [note for _, note in calls(tmp_path)] == ["mine"]


async def test_scores_that_are_cached_need_no_reward_and_without_redis_all_are_scored_with_one_warning(
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    with PrivateRedis(tmp_path / "redis") as redis:
        async with pools_of(tmp_path, notes, cache_url=redis.url, cache=True) as pools:
            first, second = await score(pools), await score(pools)
            np.testing.assert_array_equal(first.rewards, second.rewards)
            assert first.explanations == second.explanations
            assert (len(calls(tmp_path)), pools.num_cached) == (1, 2)
            os.kill(redis.process_id, signal.SIGKILL)
            for _ in range(2):
                np.testing.assert_allclose((await score(pools)).rewards, BRIGHTNESS)
            assert (len(calls(tmp_path)), pools.num_cached) == (3, 2)
    assert len(notes) == 1
    assert "does not answer" in notes[0]
    assert redis.url not in notes[0]
