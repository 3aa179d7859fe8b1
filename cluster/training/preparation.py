"""What a run does before it trains: make sure that its folder is shared, make the policy to start from and bring it to
every node, and leave out what will not fit it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ray
from ray.actor import ActorHandle

from cluster.actors import folders
from cluster.actors.learner import Stage
from cluster.learning import LearnerGroup
from cluster.reports import RunLog
from configs.errors import RunError
from configs.schema import RunConfig
from rewards.coverage import reason_against
from rollout.prompts import Conversation, PromptSet


@dataclass(slots=True)
class StartingModel:
    """The policy that a run starts from: a hub id, a folder that is on every node, or a warm-started one, which was
    made on one node and is brought to the others as they need it."""

    config: RunConfig
    log: RunLog
    path: str = ""
    """Folder or hub id; of a warm-started one the ~ is each node's own home."""
    _bringing: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def prepare(self, learner: LearnerGroup) -> None:
        """Find out `path`; makes the warm start first when there is one to make. The learner's ranks then have it, and
        so has the launcher.

        Raises ConfigError when the run's directory is not the same folder on the learner's nodes: before anything that
        takes long.
        """
        await learner.check_shares(self.log.directory.path)
        if self.config.warm_start is None:
            self.path = self.config.model.path
            return
        self.path = await learner.warm_start(self._show)
        if not folders.is_here(self.path):
            parts = await learner.give_folder(self.path)
            await asyncio.to_thread(folders.unpack, self.path, (ray.get(part) for part in parts))
        await self.bring_to_ranks(learner)

    async def bring_to_ranks(self, learner: LearnerGroup) -> None:
        """Bring a warm-started policy to the nodes of the learner's ranks that are without it."""
        if self.config.warm_start is not None and await learner.lacks_folder(self.path):
            await learner.take_folder(self.path, await self._parts())

    async def bring_to(self, worker: ActorHandle) -> None:
        """The same for the node of a rollout worker that has not been started."""
        if self.config.warm_start is None or await worker.has_folder.remote(self.path):
            return
        async with self._bringing:  # one at a time: the next may be on the same node
            if not await worker.has_folder.remote(self.path):
                await worker.take_folder.remote(self.path, await self._parts())

    async def _parts(self) -> Sequence[ray.ObjectRef[folders.Part]]:
        """The launcher's own copy, in the object store for as long as somebody holds the references."""
        try:
            return await asyncio.to_thread(lambda: [ray.put(part) for part in folders.pack(self.path)])
        except OSError as error:
            raise RunError(f"the warm-started model {Path(self.path).expanduser()} cannot be read: {error}") from error

    def _show(self, stage: Stage) -> None:
        detail = ", ".join(f"{key} {value:.3g}" for key, value in stage.metrics.items())
        self.log.progress.stage(f"warm start: {stage.name}", stage.done, stage.total, detail)


def prompts_that_fit(
    config: RunConfig, model_path: str, train: PromptSet, evaluation: Mapping[str, PromptSet]
) -> tuple[PromptSet, dict[str, PromptSet]]:
    """The prompt sets without what is too long, and without what no reward has anything to say of: left out by name
    now, it cannot fail a group later.

    Raises DataError when none is left.
    """
    rollout = config.rollout
    conversation = Conversation.of_run(model_path, rollout, config.model.revision)
    too_long = conversation.reason_against(rollout.max_prompt_tokens)
    unrewarded = reason_against(config.rewards)
    return train.without(too_long).without(unrewarded), {
        name: prompts.without(too_long).without(unrewarded) for name, prompts in evaluation.items()
    }
