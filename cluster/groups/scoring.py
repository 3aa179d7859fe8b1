"""The reward pools: every reward of the ensemble scores a group's pictures at the same time.

pictures (by reference) ─┬─► pool of reward A ─┐
                         ├─► pool of reward B ─┼─► combine ─► one reward a picture
                         └─► pool of reward C ─┘
                                │ replica died, or its reward hangs: it is replaced, and
                                └─► the group goes to another one, `retries` times; then RewardError

A replica batches across the groups that it is given (`rewards.worker`), and is given no more than it
can batch: the others wait here for whichever replica is free first. Groups that wait keep their place
in admission, so slow rewards hold up rollout after `(max_staleness + 1) × groups_per_step` groups.
"""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.actors import RewardActor, spawn
from cluster.actors.score_cache import RewardAnswer
from cluster.pools import ActorPool, Patience, PoolHooks
from cluster.pools.elasticity import ElasticPool
from cluster.pools.remote_errors import CallFailedError, ObjectsLostError, WorkerLostError
from configs.errors import RewardError, RewardTimeoutError
from configs.schema import RewardConfig
from rewards.combine import Combined, combine
from rollout.records import Prompt, Score

BATCHES_PER_REPLICA = 2
"""Batches that one replica holds: one it scores, one it gathers. More would wait there instead of at another."""


class RewardPools:
    """One `ActorPool` per configured reward."""

    def __init__(
        self,
        rewards: tuple[RewardConfig, ...],
        group_size: int,
        run_id: str,
        hooks: Any,
        patience: Patience,
        cache_url: str | None = None,
        *,
        one_group_a_time: bool = False,
    ) -> None:
        """`hooks(spawn, start)` makes the PoolHooks of one pool; cache_url: Redis for rewards with `cache: true`.

        one_group_a_time: a replica never scores pictures of two groups as one batch; for run.deterministic.
        """
        self._rewards = rewards
        self._one_group_a_time = one_group_a_time
        self._group_size = group_size
        self._patience = patience
        self._cache_url = cache_url
        self._num_cached = 0
        self._has_warned = False
        self._pools = {reward.name: self._make_pool(reward, run_id, hooks) for reward in rewards}
        self._weights = {reward.name: reward.weight for reward in rewards}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._pools)

    @property
    def num_lost(self) -> int:
        """Replicas that died or hung so far."""
        return sum(pool.num_lost for pool in self._pools.values())

    @property
    def num_cached(self) -> int:
        """Scores that came from the cache so far."""
        return self._num_cached

    @property
    def elastic_pools(self) -> tuple[ElasticPool, ...]:
        """One for each reward."""
        return tuple(
            ElasticPool(self._pools[r.name], r.replicas, r.cpus_per_replica, r.gpus_per_replica) for r in self._rewards
        )

    def describe(self) -> str:
        """`reward-shapes: 1 of 2 READY; …` of each pool."""
        return "; ".join(pool.describe() for pool in self._pools.values())

    async def start(self) -> None:
        await asyncio.gather(*(pool.start() for pool in self._pools.values()))

    async def score(self, pictures: Any, prompt: Prompt, num_pictures: int) -> Combined:
        """Scores of a group's pictures (a reference to uint8 [G, H, W, 3]), which all show `prompt`.

        Raises RewardError, naming the reward, when one cannot be had; ObjectsLostError when the pictures went with
        their node: no replica can score them any more.
        """
        prompts = [prompt] * num_pictures
        columns = await asyncio.gather(*(self._score_one(reward, pictures, prompts) for reward in self._rewards))
        scores = dict(zip(self._pools, columns, strict=True))
        return combine(scores, self._weights)

    async def close(self) -> None:
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))

    async def _score_one(self, reward: RewardConfig, pictures: Any, prompts: list[Prompt]) -> list[Score]:
        # A replica times its own batches; this bound is for one that does not answer at all.
        timeout_s = reward.timeout_s * (reward.retries + 1) * (BATCHES_PER_REPLICA + 1)
        for _ in range(reward.retries + 1):
            try:
                answer: RewardAnswer = await self._pools[reward.name].call(
                    lambda handle: handle.score.remote(pictures, prompts), timeout_s
                )
                return self._scores_of(answer)
            except WorkerLostError as error:
                lost = error
            except ObjectsLostError:
                raise
            except CallFailedError as error:
                raise RewardError(f"reward '{reward.name}': {error}") from error
        raise RewardError(f"reward '{reward.name}' lost {reward.retries + 1} replicas on one group: {lost}") from lost

    def _scores_of(self, answer: RewardAnswer) -> list[Score]:
        self._num_cached += answer.num_cached
        if answer.warning and not self._has_warned:
            self._has_warned = True
            self._note(answer.warning)
        return answer.scores

    def _make_pool(self, reward: RewardConfig, run_id: str, hooks: Any) -> ActorPool:
        def make_actor(worker_id: str) -> Any:
            return spawn(
                RewardActor,
                reward,
                self._cache_url if reward.cache else None,
                name=f"{run_id}-{worker_id}",
                num_cpus=reward.cpus_per_replica,
                num_gpus=reward.gpus_per_replica,
                runtime_env=reward.runtime_env,
            )

        async def start(handle: Any) -> None:
            await handle.start.remote()

        kind = f"reward-{reward.name.replace(':', '.')}"
        pool_hooks: PoolHooks = hooks(make_actor, start)
        self._note = pool_hooks.note
        max_groups = max(1, BATCHES_PER_REPLICA * reward.batch_size // self._group_size)
        if self._one_group_a_time:
            max_groups = 1
        return ActorPool(kind, reward.replicas.min, max_groups, pool_hooks, self._patience, fatal=(RewardTimeoutError,))
