"""The rewards of a step's groups as tensors [num_groups, G], checked."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from configs.errors import LearnerError
from rollout.records import ScoredGroup, TrajectoryBatch


def columns_of(batch: TrajectoryBatch) -> dict[str, Tensor]:
    """Reward name -> float32 [num_groups, G]; of the names that all groups have."""
    names = [name for name in batch.groups[0].reward_columns if all(name in g.reward_columns for g in batch.groups)]
    return {name: torch.from_numpy(np.stack([g.reward_columns[name] for g in batch.groups])) for name in names}


def rewards_of(batch: TrajectoryBatch) -> Tensor:
    """The combined rewards, float32 [num_groups, G]; NaN for a trajectory that is left out.

    Raises LearnerError for an empty batch, for groups of different sizes, for rewards that do not fit their
    trajectories, for an infinite reward, and for a group of which fewer than two trajectories are left.
    """
    if not batch.groups:
        raise LearnerError(f"step {batch.step}: the batch has no group")
    group_size = len(batch.groups[0].rewards)
    for group in batch.groups:
        _check_group(group, group_size, batch.step)
    return torch.from_numpy(np.stack([group.rewards for group in batch.groups]))


def _check_group(group: ScoredGroup, group_size: int, step: int) -> None:
    request = group.rollout.request
    name = f"step {step}, group {request.sequence} (prompt {request.prompt.prompt_id})"
    if len(group.rewards) != len(group.rollout.trajectories):
        raise LearnerError(f"{name}: {len(group.rewards)} rewards for {len(group.rollout.trajectories)} trajectories")
    if len(group.rewards) != group_size:
        raise LearnerError(f"{name}: {len(group.rewards)} trajectories, but the batch's first group has {group_size}")
    if np.isinf(group.rewards).any() or np.isfinite(group.rewards).sum() < 2:
        raise LearnerError(
            f"{name}: rewards {group.rewards.tolist()}: one is infinite, or fewer than two are left; "
            "the rewards must not let it by"
        )
