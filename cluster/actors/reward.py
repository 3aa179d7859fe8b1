"""The Ray actor around one replica of a reward."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cluster.actors.score_cache import RewardAnswer, ScoreCache
from cluster.actors.spawning import node_id
from configs.schema import RewardConfig
from rollout.records import Prompt, UInt8Array


class RewardActor:
    """One replica of one reward. cache_url: Redis that keeps its scores, for a reward with `cache: true`."""

    def __init__(self, config: RewardConfig, cache_url: str | None) -> None:
        os.environ.update(config.runtime_env.get("env_vars", {}))  # not by Ray, see `cluster.actors.spawning`

        from rewards.worker import RewardWorker

        self._worker = RewardWorker(config)
        self._cache = None if cache_url is None else ScoreCache(cache_url, config)

    async def start(self) -> None:
        await self._worker.start()

    async def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> RewardAnswer:
        if self._cache is None:
            return RewardAnswer(await self._worker.score(pictures, prompts))
        return await self._cache.score(self._worker.score, pictures, prompts)

    async def ping(self) -> str:
        return node_id()
