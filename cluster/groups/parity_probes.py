"""What is asked of rollout workers so that the learner can compare itself with each of them.

    the groups of step n, which the learner makes at version n ─► workers with hardly a token of version n among them
    at the first two steps, and every parity.every_steps ─► the delivery of version n ends ─► each of these is probed:
                                                              short CoTs and beginnings of pictures ─► learner

A worker's tokens of the learner's own version come with its groups where the run is synchronous. Where it is not, the
groups of a step may all have been finished before the version arrived that the learner is at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ray.exceptions import RayError

from cluster.pools import ActorPool
from cluster.pools.member import Member
from cluster.pools.remote_errors import first_line
from configs.errors import BicotError
from configs.schema import RunConfig
from rollout.records import GroupRequest, GroupRollout, Prompt, derive_seed

NUM_TRAJECTORIES: Final = 4
NUM_TOKENS: Final = 32
"""Of each CoT and each picture at most."""
_MIN_TOKENS: Final = 32
"""Of the learner's version in a step's groups, for which a worker is not probed."""


@dataclass(frozen=True, slots=True)
class ParityProbes:
    """Of one pipeline. `first_step` is the one that it begins with."""

    config: RunConfig
    rollouts: ActorPool
    note: Callable[[str], None]
    first_step: int

    async def of_step(
        self, step: int, groups: Sequence[GroupRollout], delivery: Awaitable[None] | None
    ) -> tuple[GroupRollout, ...]:
        """Probes at version `step` of the workers that these groups, which are trained on next, say too little of.

        delivery: of that version; it is awaited before a worker is asked, and a worker that does not answer is noted.
        """
        parity = self.config.parity
        is_due = step - self.first_step <= 1 or step % parity.every_steps == 0
        if not is_due or self.config.algorithm.old_logprobs == "guided" or not silent_workers(step, groups, self._ids):
            return ()
        if delivery is not None:
            await delivery
        silent = silent_workers(step, groups, self._ids)
        asked = [member for member in self.rollouts.members if member.worker_id in silent]
        answers = await asyncio.gather(*(self._probe(member, step, groups[0].request.prompt) for member in asked))
        return tuple(answer for answer in answers if answer is not None)

    @property
    def _ids(self) -> Sequence[str]:
        return [member.worker_id for member in self.rollouts.members]

    async def _probe(self, member: Member, step: int, prompt: Prompt) -> GroupRollout | None:
        seed = derive_seed(self.config.run.seed, "parity", step, member.worker_id)
        request = GroupRequest(-1, 0, prompt, NUM_TRAJECTORIES, images_per_cot=1, seed=seed)
        try:
            async with asyncio.timeout(self.config.rollout.group_timeout_s):
                rollout: GroupRollout = await member.handle.probe.remote(request, NUM_TOKENS)
            return rollout
        except (RayError, BicotError, TimeoutError) as error:
            self.note(f"step {step}: worker {member.worker_id} was not compared with the learner: {first_line(error)}")
            return None


def silent_workers(version: int, groups: Sequence[GroupRollout], worker_ids: Sequence[str]) -> set[str]:
    """Those of the workers that sampled fewer than `_MIN_TOKENS` image tokens of these groups under `version`."""
    num_tokens = dict.fromkeys(worker_ids, 0)
    for group in groups:
        if group.worker_id in num_tokens:
            num_tokens[group.worker_id] += sum(
                int((t.whole_versions("image") == version).sum()) for t in group.trajectories
            )
    return {worker for worker, count in num_tokens.items() if count < _MIN_TOKENS}
