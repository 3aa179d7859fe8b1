"""`run.deterministic` on vLLM: bit for bit the same, through actors and queues or without them, in one go or in two."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.actors import spawn
from configs.schema import RunConfig
from learner.worker import LearnerWorker
from rewards.worker import RewardWorker
from rollout.prompts import Conversation, PromptSource, load_prompts
from rollout.records import GroupRequest, ScoredGroup, TrajectoryBatch, derive_seed
from rollout.worker import RolloutWorker
from tests.integration.learner_ranks import free_port
from tests.integration.training import Outcome, RecordingLog, run_tree, train

NUM_STEPS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


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
        return ScoredGroup(rolled, rewards, {"shapes": rewards}, ("",) * size, scored_s=0.0)


def make_tree(name: str, directory: Path) -> dict[str, Any]:
    return run_tree(
        name,
        directory,
        run={"steps": NUM_STEPS, "deterministic": True},
        algorithm={"max_staleness": 0, "groups_per_step": 3},
        rollout={"engine": "vllm"},
        learner={"micro_batch_size": 3},
    )


async def stop_at_step_1(log: RecordingLog, event: str, number: int) -> None:
    if (event, number) == ("step", 1):
        assert log.run is not None
        log.run.stop()


@pytest.fixture(scope="module")
def whole(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return asyncio.run(train(make_tree("whole", tmp_path_factory.mktemp("runs"))))


def made_by(outcome: Outcome) -> list[tuple[float | None, float | None]]:
    assert outcome.error is None
    return [(row["loss"], row["reward/mean"]) for row in outcome.rows]


def test_a_run_equals_a_plain_loop(whole: Outcome, tmp_path: Path) -> None:
    async def loop() -> list[tuple[float, float]]:
        actor = spawn(SequentialLoop, name="sequential-loop", num_cpus=1, threads=1)
        made: list[tuple[float, float]] = await actor.run.remote(make_tree("loop", tmp_path))
        return made

    assert len(made_by(whole)) == NUM_STEPS
    assert made_by(whole) == asyncio.run(loop())


@pytest.mark.proof
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(whole: Outcome, tmp_path: Path) -> None:
    tree = make_tree("in-two", tmp_path)
    stopped = asyncio.run(train(tree, stop_at_step_1))
    assert stopped.summary is not None
    assert (stopped.summary.status, stopped.summary.steps) == ("stopped", 1)
    tree["rollout"]["num_workers"] = 2  # who rolls which group does not matter either
    resumed = asyncio.run(train(tree, resumed=stopped.directory))
    assert made_by(resumed) == made_by(whole)
