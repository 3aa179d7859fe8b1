"""Evaluation: the same prompts with the same seeds, before and after training.

Each evaluation set is rolled by the same workers and scored by the same rewards as training, one
picture a prompt, and touches neither admission nor the trajectory queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.groups.roller import GroupGivenUpError, GroupRoller, RolledGroup
from rollout.records import GroupRequest, Prompt, derive_seed


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of one evaluation set."""

    mean_reward: float
    num_failed: int
    """Prompts that could not be rolled or scored; they are not in the mean."""
    groups: tuple[RolledGroup, ...]

    @property
    def means(self) -> dict[str, float | None]:
        """Of each reward by itself."""
        return {name: self.mean_of(name) for name in self.groups[0].scored.reward_columns}

    def mean_of(self, reward: str) -> float | None:
        """Of one reward, over the pictures that it applies to; None when there are none."""
        scores = self.scores_of(reward)
        return float(scores.mean()) if len(scores) else None

    def scores_of(self, reward: str) -> NDArray[np.float32]:
        """float32 [N]: of one reward, of the pictures that it applies to."""
        scores = np.concatenate([group.scored.reward_columns[reward] for group in self.groups])
        return scores[np.isfinite(scores)]


async def evaluate(roller: GroupRoller, prompts: Sequence[Prompt], name: str, seed: int) -> Evaluation:
    """Roll and score one picture a prompt. The tokens depend on weights, `name`, `seed` and place, only.

    Raises ValueError without prompts, and the last failure when not a single one could be rolled.
    """
    if not prompts:
        raise ValueError(f"evaluation set '{name}' has no prompts")
    requests = [
        GroupRequest(
            sequence=-1 - index,
            attempt=0,
            prompt=prompt,
            group_size=1,
            images_per_cot=1,
            seed=derive_seed(seed, "evaluation", name, index),
        )
        for index, prompt in enumerate(prompts)
    ]
    results = await asyncio.gather(*(_roll_or_fail(roller, request) for request in requests))
    groups = tuple(result for result in results if isinstance(result, RolledGroup))
    failures = [result for result in results if isinstance(result, GroupGivenUpError)]
    if not groups:
        raise failures[-1]
    rewards = [float(group.scored.rewards[0]) for group in groups]
    return Evaluation(mean_reward=float(np.mean(rewards)), num_failed=len(failures), groups=groups)


async def evaluate_all(roller: GroupRoller, sets: Mapping[str, Sequence[Prompt]], seed: int) -> dict[str, Evaluation]:
    """`evaluate` for each named set, one after the other."""
    return {name: await evaluate(roller, prompts, name, seed) for name, prompts in sets.items()}


async def _roll_or_fail(roller: GroupRoller, request: GroupRequest) -> RolledGroup | GroupGivenUpError:
    try:
        return await roller.roll(request)
    except GroupGivenUpError as error:
        return error
