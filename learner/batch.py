"""From the groups of one step to each rank's padded micro-batches.

    TrajectoryBatch ─► advantages of whole groups ─► trajectories by length, dealt to ranks ─► MicroBatch, ...

Every rank holds the whole TrajectoryBatch, computes the same plan and takes its own share, so
nothing needs to be exchanged: not the advantages, not the token count that the loss divides by.
Micro-batch j has the same padded shape on every rank, as ZeRO-3 demands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import LearnerError
from learner.advantages import group_advantages, share_without_spread
from learner.phase_tokens import PhaseTokens
from rollout.records import ScoredGroup, Trajectory, TrajectoryBatch


@dataclass(frozen=True, slots=True)
class PhaseBatch:
    """One phase of one micro-batch of B trajectories."""

    tokens: PhaseTokens
    behaviour_logprobs: Tensor
    """float32 [B, N], nats; 0 where the mask is False."""
    advantages: Tensor
    """float32 [B]."""

    def to(self, device: torch.device) -> PhaseBatch:
        return PhaseBatch(self.tokens.to(device), self.behaviour_logprobs.to(device), self.advantages.to(device))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Trajectories that pass the policy together, a phase at a time."""

    cot: PhaseBatch
    image: PhaseBatch

    @property
    def phases(self) -> tuple[PhaseBatch, PhaseBatch]:
        return self.cot, self.image


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one rank does in one step; the figures are of the whole batch, the same on every rank."""

    micro_batches: tuple[MicroBatch, ...]
    num_trajectories: int
    num_cot_tokens: int
    num_image_tokens: int
    advantage_std: float
    groups_without_spread: float
    """Share of groups that teach nothing, since all their rewards are equal."""

    @property
    def num_tokens(self) -> int:
        return self.num_cot_tokens + self.num_image_tokens


def plan_step(
    batch: TrajectoryBatch, *, rank: int, num_ranks: int, micro_batch_size: int, advantage_epsilon: float
) -> StepPlan:
    """This rank's share of a step.

    Trajectories are sorted by the length of their CoT (ties in the batch's order) and dealt in
    turn, so that little is padding and all ranks have the same to do.

    Raises LearnerError for a group whose rewards do not fit its trajectories or are not finite, for
    groups of different sizes, and when the trajectories do not divide by num_ranks x micro_batch_size.
    """
    rewards = _rewards(batch)
    advantages = group_advantages(rewards, advantage_epsilon)
    trajectories = [trajectory for group in batch.groups for trajectory in group.rollout.trajectories]
    round_size = num_ranks * micro_batch_size
    if len(trajectories) % round_size:
        raise LearnerError(
            f"step {batch.step}: {len(trajectories)} trajectories do not divide by {num_ranks} rank(s) x "
            f"learner.micro_batch_size {micro_batch_size}"
        )
    order = np.argsort([len(trajectory.cot_ids) for trajectory in trajectories], kind="stable")
    rounds = order.reshape(-1, round_size)
    flat_advantages = advantages.flatten()
    micro_batches = tuple(
        _micro_batch(
            [trajectories[index] for index in members[rank::num_ranks]],
            flat_advantages[members[rank::num_ranks]],
            _Widths.of([trajectories[index] for index in members]),
        )
        for members in rounds
    )
    return StepPlan(
        micro_batches=micro_batches,
        num_trajectories=len(trajectories),
        num_cot_tokens=sum(len(trajectory.cot_ids) for trajectory in trajectories),
        num_image_tokens=sum(len(trajectory.image_ids) for trajectory in trajectories),
        advantage_std=float(flat_advantages.std()),
        groups_without_spread=share_without_spread(rewards),
    )


def _rewards(batch: TrajectoryBatch) -> Tensor:
    """float32 [num_groups, G]."""
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
    if not np.isfinite(group.rewards).all():
        raise LearnerError(
            f"{name}: rewards {group.rewards.tolist()} are not all finite; the rewards must not let it by"
        )


@dataclass(frozen=True, slots=True)
class _Widths:
    """Padded lengths of a micro-batch, over all ranks."""

    semantic_prompt: int
    cot: int
    image_prompt: int
    image: int

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> _Widths:
        return cls(
            max(len(trajectory.semantic_prompt_ids) for trajectory in trajectories),
            max(len(trajectory.cot_ids) for trajectory in trajectories),
            max(len(trajectory.image_prompt_ids) for trajectory in trajectories),
            max(len(trajectory.image_ids) for trajectory in trajectories),
        )


def _micro_batch(trajectories: Sequence[Trajectory], advantages: Tensor, widths: _Widths) -> MicroBatch:
    cot_ids, cot_lengths = right_pad([trajectory.cot_ids for trajectory in trajectories], widths.cot)
    image_ids, image_lengths = right_pad([trajectory.image_ids for trajectory in trajectories], widths.image)
    cot_behaviour, _ = right_pad([trajectory.cot_logprobs for trajectory in trajectories], widths.cot)
    image_behaviour, _ = right_pad([trajectory.image_logprobs for trajectory in trajectories], widths.image)
    cot = PhaseTokens(
        "cot",
        *right_pad([trajectory.semantic_prompt_ids for trajectory in trajectories], widths.semantic_prompt),
        cot_ids,
        _mask(cot_lengths, widths.cot),
    )
    image = PhaseTokens(
        "image",
        *right_pad([trajectory.image_prompt_ids for trajectory in trajectories], widths.image_prompt),
        image_ids,
        _mask(image_lengths, widths.image),
    )
    return MicroBatch(PhaseBatch(cot, cot_behaviour, advantages), PhaseBatch(image, image_behaviour, advantages))


def right_pad(sequences: Sequence[NDArray[np.int32] | NDArray[np.float32]], width: int) -> tuple[Tensor, Tensor]:
    """(padded with 0 [B, width], lengths int64 [B]); int32 becomes int64, float32 stays."""
    dtype = np.float32 if np.issubdtype(sequences[0].dtype, np.floating) else np.int64
    padded = np.zeros((len(sequences), width), dtype)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return torch.from_numpy(padded), torch.tensor([len(sequence) for sequence in sequences])


def _mask(lengths: Tensor, width: int) -> Tensor:
    return torch.arange(width) < lengths[:, None]
