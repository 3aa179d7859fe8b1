"""Reinforcement learning without Ray, queues and overlap, to which a deterministic run is compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from configs.local.ports import free_port
from configs.schema import RunConfig
from learner.worker import LearnerWorker
from rewards.worker import RewardWorker
from rollout.prompts import Conversation, PromptSource, load_prompts
from rollout.records import GroupRequest, ScoredGroup, TrajectoryBatch, derive_seed
from rollout.worker import RolloutWorker


class SequentialLoop:
    """Reinforcement learning as it is explained: roll, score, learn, and over again. One process, nothing overlaps."""

    async def run(self, tree: Mapping[str, Any]) -> list[tuple[float, float]]:
        """(loss, mean reward) of each step."""
        config = RunConfig.model_validate(tree)
        path = config.model.path
        fits = Conversation.from_pretrained(path).reason_against(config.rollout.max_prompt_tokens)
        prompts = PromptSource(load_prompts(config.data.train, 0).without(fits).prompts, config.run.seed)
        rollout = await RolloutWorker.start(path, config, "only")
        reward = RewardWorker(config.rewards[0])
        await reward.start()
        learner = LearnerWorker.start(config, path, 0, master_address="127.0.0.1", master_port=free_port())
        made = []
        for step in range(config.run.steps):
            first = step * config.algorithm.groups_per_step
            sequences = range(first, first + config.algorithm.groups_per_step)
            groups = [await self._roll(config, prompts, rollout, reward, sequence) for sequence in sequences]
            report = learner.train_step(TrajectoryBatch(step, tuple(groups)))
            await rollout.update_weights(step + 1, learner.export_weights(step + 1))
            made.append((report.metrics["loss"], float(np.concatenate([group.rewards for group in groups]).mean())))
        await rollout.close()
        return made

    async def _roll(
        self, config: RunConfig, prompts: PromptSource, rollout: RolloutWorker, reward: RewardWorker, sequence: int
    ) -> ScoredGroup:
        size = config.algorithm.group_size
        seed = derive_seed(config.run.seed, "group", sequence)
        request = GroupRequest(sequence, 0, prompts.prompt_at(sequence), size, config.algorithm.images_per_cot, seed)
        rolled, pictures = await rollout.roll_group(request)
        scores = await reward.score(pictures, [request.prompt] * size)
        rewards = np.array([score.value for score in scores], np.float32)
        return ScoredGroup(rolled, rewards, {config.rewards[0].name: rewards}, ("",) * size, scored_s=0.0)
