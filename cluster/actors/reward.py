"""The Ray actor around one replica of a reward."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from cluster.actors.score_cache import RewardAnswer, ScoreCache
from cluster.actors.sources import check_same_sources
from cluster.actors.spawning import node_id, own_name
from cluster.actors.usage import Usage, UsageRecord
from configs.errors import RewardError
from configs.schema import RewardConfig
from rollout.records import Prompt, UInt8Array


class RewardActor:
    """One replica of one reward. cache_url: Redis that keeps its scores, for a reward with `cache: true`."""

    def __init__(self, config: RewardConfig, cache_url: str | None) -> None:
        os.environ.update(config.runtime_env.get("env_vars", {}))  # not by Ray, see `cluster.actors.spawning`

        from rewards.worker import RewardWorker

        self._name = config.name
        self._usage = UsageRecord()
        self._worker = RewardWorker(config)
        self._cache = None if cache_url is None else ScoreCache(cache_url, config)

    def __repr__(self) -> str:
        return own_name()

    async def start(self) -> None:
        check_same_sources()
        await self._worker.start()
        self._usage.started()

    async def score(
        self,
        pictures: UInt8Array,
        prompts: Sequence[Prompt],
        plans: Sequence[str] | None = None,
        only: Sequence[int] | None = None,
    ) -> RewardAnswer:
        """One answer a picture, as `RewardWorker.score`, and from the cache what is known.

        only: places of the pictures to score, None for all; a group-wise reward scores all, and answers of these.
        Raises RewardTimeoutError and RewardBrokenError, after which this replica is of no more use; RewardError for
        whatever else goes wrong here.
        """
        reward = self._worker.reward
        if not reward.reads_plans:
            plans = None
        if only is not None and not reward.is_group_wise:
            pictures, prompts = pictures[list(only)], [prompts[place] for place in only]
            plans = None if plans is None else [plans[place] for place in only]
        try:
            if self._cache is None:
                answer = RewardAnswer(await self._worker.score(pictures, prompts, plans))
            else:
                answer = await self._cache.score(self._worker.score, pictures, prompts, plans)
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(f"reward '{self._name}': {type(error).__name__}: {error}") from error
        warning = answer.warning or self._worker.take_note()
        if only is not None and reward.is_group_wise:
            answer = replace(answer, scores=[answer.scores[place] for place in only])
        return replace(answer, warning=warning, figures=self._worker.take_figures())

    async def ping(self) -> str:
        return node_id()

    async def usage(self) -> Usage:
        return self._usage.take()

    async def close(self) -> None:
        """Let the reward end what it has begun."""
        await self._worker.close()
