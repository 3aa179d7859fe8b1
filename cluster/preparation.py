"""What a run does before it trains: make the policy to start from, and leave out what will not fit it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from cluster.actors import spawn
from cluster.actors.progress import ProgressActor
from cluster.learning import LearnerGroup
from cluster.reports import RunLog
from configs.schema import RunConfig
from rewards.coverage import reason_against
from rollout.prompts import Conversation, PromptSet

PROGRESS_POLL_S = 1.0


async def prepare_model(config: RunConfig, learner: LearnerGroup, log: RunLog) -> str:
    """The folder or hub id of the policy to train; makes the warm start first when there is one to make."""
    if config.warm_start is None:
        return config.model.path
    reports = spawn(ProgressActor, name=f"{log.directory.name}-progress", num_cpus=0)
    warm = asyncio.create_task(learner.warm_start(reports))
    while not warm.done():
        latest = await reports.latest.remote()
        if latest is not None:
            stage, done, total, metrics = latest
            detail = ", ".join(f"{key} {value:.3g}" for key, value in metrics.items())
            log.progress.stage(f"warm start: {stage}", done, total, detail)
        await asyncio.wait({warm}, timeout=PROGRESS_POLL_S)
    return await warm


def prompts_that_fit(
    config: RunConfig, model_path: str, train: PromptSet, evaluation: Mapping[str, PromptSet]
) -> tuple[PromptSet, dict[str, PromptSet]]:
    """The prompt sets without what is too long, and without what no reward has anything to say of: left out by name
    now, it cannot fail a group later.

    Raises DataError when none is left.
    """
    rollout = config.rollout
    conversation = Conversation.from_pretrained(
        model_path, rollout.system_prompt, rollout.instruction, revision=config.model.revision
    )
    too_long = conversation.reason_against(rollout.max_prompt_tokens)
    unrewarded = reason_against(config.rewards)
    return train.without(too_long).without(unrewarded), {
        name: prompts.without(too_long).without(unrewarded) for name, prompts in evaluation.items()
    }
