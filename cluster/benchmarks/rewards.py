"""The reward pool: pictures a second against the plain loop, and what the pool itself adds to a batch.

plain loop   one picture after the other through the reward, as T2I-R1 does
pool         groups through RewardPools: replicas are Ray actors that batch across groups

What each reward costs by itself: cluster/benchmarks/reward_models.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.benchmarks.report import Scope, Table, ratio, spread
from cluster.benchmarks.reward_models.small_models import save_clip
from cluster.benchmarks.reward_models.tables import LARGER_CLIP
from cluster.groups import RewardPools
from cluster.pools import Patience, PoolHooks
from cluster.session import ray_session
from cluster.session.placement import PlacementPlan
from configs.errors import RewardError
from configs.schema import ClusterConfig, RewardConfig
from rewards.calling import Answer
from rewards.registry import create_reward
from rollout.records import Prompt, Score, UInt8Array

GROUP_SIZE = 8
PICTURE_SIZE = 64
CONSTANT = "cluster.benchmarks.rewards:ConstantReward"


class ConstantReward:
    """Takes no time."""

    def __init__(self, device: str) -> None:
        pass

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(0.5)] * len(prompts)


def measure(scope: Scope) -> list[Table]:
    """Both tables."""
    num_groups, num_rounds = scope.pick(quick=4, full=16), scope.pick(quick=2, full=5)
    num_batches = scope.pick(quick=50, full=300)
    with tempfile.TemporaryDirectory(prefix="bicot-bench-", ignore_cleanup_errors=True) as directory:
        folder = Path(directory) / "clip"
        save_clip(folder, **LARGER_CLIP)
        hps = RewardConfig(name="hps", options={"model": str(folder)}, batch_size=32, cpus_per_replica=0.1)
        constant = RewardConfig(name=CONSTANT, max_wait_ms=0, cpus_per_replica=0.1)
        with ray_session(ClusterConfig(num_cpus=4), PlacementPlan(()), Path(directory) / "ray-logs"):
            speeds = asyncio.run(_measure_speeds(hps, num_groups, num_rounds))
            latencies_ms = asyncio.run(_measure_latency(constant, num_batches))
    plain = speeds["plain"]
    return [
        Table(
            "Reward pool: pictures a second",
            f"HPS on a random CLIP of 23 M parameters, {num_groups} groups of {GROUP_SIZE} pictures of {PICTURE_SIZE} "
            f"pixels a round, {scope.num_threads} thread(s) a process. Plain: one picture after the other. Pool: in "
            "batches of 32.",
            ("", "pictures a second", "against the plain loop"),
            tuple((name, spread(values), ratio(values, plain)) for name, values in speeds.items()),
        ),
        Table(
            "Reward pool: latency of its own",
            f"{num_batches} groups of {GROUP_SIZE}, one after the other, through a reward that takes no time.",
            ("", "median", "95 % are below"),
            (("milliseconds a group", f"{np.median(latencies_ms):.2g}", f"{np.quantile(latencies_ms, 0.95):.2g}"),),
        ),
    ]


async def _measure_speeds(reward: RewardConfig, num_groups: int, num_rounds: int) -> dict[str, list[float]]:
    """Pictures a second of the loop and of pools with 1 and 2 replicas, in turns."""
    plain = create_reward(reward.name, reward.options, "cpu")
    pools = [_pools(reward, replicas) for replicas in (1, 2)]
    speeds: dict[str, list[float]] = {"plain": [], "1 replica": [], "2 replicas": []}
    try:
        await asyncio.gather(*(pool.start() for pool in pools))
        for number in range(num_rounds + 1):
            groups = [_group(number * num_groups + index) for index in range(num_groups)]
            references = [(ray.put(pictures), prompt) for pictures, prompt in groups]
            moments = [time.perf_counter()]
            expected = [
                [value_of(plain.score(pictures[i : i + 1], [prompt])[0]) for i in range(GROUP_SIZE)]
                for pictures, prompt in groups
            ]
            moments.append(time.perf_counter())
            for pool in pools:
                combined = await asyncio.gather(*(pool.score(*group, GROUP_SIZE) for group in references))
                moments.append(time.perf_counter())
                np.testing.assert_allclose([group.rewards for group in combined], expected, atol=1e-5)
            if number:  # the first round warms all of them up
                for name, started_s, ended_s in zip(speeds, moments, moments[1:], strict=False):
                    speeds[name].append(num_groups * GROUP_SIZE / (ended_s - started_s))
    finally:
        await asyncio.gather(*(pool.close() for pool in pools))
    return speeds


async def _measure_latency(reward: RewardConfig, num_batches: int) -> list[float]:
    """Milliseconds from the call to the combined scores, a group each."""
    pool = _pools(reward, 1)
    latencies_ms = []
    try:
        await pool.start()
        for number in range(num_batches + 20):
            pictures, prompt = _group(number)
            reference = ray.put(pictures)
            started_s = time.perf_counter()
            await pool.score(reference, prompt, GROUP_SIZE)
            if number >= 20:  # the first ones open connections
                latencies_ms.append(1000 * (time.perf_counter() - started_s))
    finally:
        await pool.close()
    return latencies_ms


def _pools(reward: RewardConfig, replicas: int) -> RewardPools:
    async def on_change(worker_id: str, state: str) -> None:
        if state == "DEAD":
            raise RuntimeError(f"{worker_id} was lost while it was measured")

    def hooks(make_actor: Any, start: Any) -> PoolHooks:
        return PoolHooks(spawn=make_actor, start=start, on_change=on_change, note=print)

    sized = RewardConfig.model_validate({**reward.model_dump(), "replicas": replicas})
    return RewardPools((sized,), GROUP_SIZE, f"bench-{replicas}-{reward.batch_size}", hooks, Patience())


def value_of(answer: Answer) -> float:
    """Of a picture; NaN where the reward does not apply. Raises what kept it from being scored."""
    if isinstance(answer, RewardError):
        raise answer
    return math.nan if answer.value is None else answer.value


def _group(seed: int) -> tuple[UInt8Array, Prompt]:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (GROUP_SIZE, PICTURE_SIZE, PICTURE_SIZE, 3), np.uint8)
    return pictures, Prompt(f"bench:{seed}", f"a {'red' if seed % 2 else 'blue'} star above a circle")
