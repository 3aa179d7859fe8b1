"""From the groups of one step to each rank's padded micro-batches.

    TrajectoryBatch ─► advantages of whole groups ─► mini-batches of whole groups, one an optimizer update
                          each ─► trajectories by length, dealt to ranks ─► MicroBatch, ...

Every rank holds the whole TrajectoryBatch, computes the same plan and takes its own share, so
nothing needs to be exchanged: not the advantages, not the token count that the loss divides by.
Micro-batch j has the same padded shape on every rank, as ZeRO-3 demands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from configs.algorithm_section import LossNormalization, Phase
from configs.errors import LearnerError
from configs.schema import RunConfig
from learner.micro_batch import Learned, MicroBatch, micro_batch
from learner.objective import AdvantageSettings
from learner.objective.advantages import advantages_by_phase, share_without_spread
from learner.objective.group_rewards import columns_of, rewards_of
from learner.objective.loss import normalization
from rollout.records import Trajectory, TrajectoryBatch


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """How a step's batch is cut, and how its tokens are weighed; fields as in `configs.schema`."""

    num_ranks: int
    micro_batch_size: int
    advantages: AdvantageSettings
    num_mini_batches: int = 1
    phases: tuple[Phase, ...] = ("cot", "image")
    """The phases that are trained; no other is passed, or counted as a token."""
    loss_normalization: LossNormalization = "token"
    max_cot_tokens: int = 0
    """0: there are no CoTs."""

    @classmethod
    def of(cls, config: RunConfig, num_ranks: int) -> PlanSettings:
        algorithm = config.algorithm
        return cls(
            num_ranks=num_ranks,
            micro_batch_size=config.learner.micro_batch_size,
            advantages=AdvantageSettings(
                epsilon=algorithm.advantage_epsilon,
                normalization=algorithm.advantage_normalization,
                reward_weights={reward.name: reward.weight for reward in config.rewards if reward.trains},
                normalized_rewards=config.normalized_rewards,
                rewards_by_phase=config.rewards_by_phase if config.has_rewards_of_one_phase else {},
            ),
            num_mini_batches=config.learner.mini_batches,
            phases=algorithm.phases,
            loss_normalization=algorithm.loss_normalization,
            max_cot_tokens=config.rollout.max_cot_tokens,
        )


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """What one optimizer update learns from: whole groups. The divisor is the same on every rank."""

    micro_batches: tuple[MicroBatch, ...]
    """This rank's."""
    loss_divisor: float
    """What the sum of the loss over all ranks' tokens is divided by."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one rank does in one step; the figures are of the whole batch, the same on every rank."""

    mini_batches: tuple[MiniBatch, ...]
    num_trajectories: int
    """That are learned from: those without a reward are no part of this figure or of those below."""
    num_tokens_by_phase: Mapping[Phase, int]
    """Of the phases that are trained."""
    cot_lengths: Tensor
    """int64 [num_trajectories]."""
    max_cot_tokens: int
    advantages: Tensor
    """float32 [num_trajectories]."""
    workers: tuple[str, ...]
    """Ids of the rollout workers that sampled the batch."""
    groups_without_spread: float
    """Share of groups that teach nothing, since all their rewards are equal."""

    @property
    def num_tokens(self) -> int:
        """Tokens that count in the loss."""
        return sum(self.num_tokens_by_phase.values())


def plan_step(batch: TrajectoryBatch, settings: PlanSettings, rank: int) -> StepPlan:
    """This rank's share of a step.

    Advantages are of the whole batch; mini-batches are runs of groups in the batch's order. In each,
    trajectories are sorted by the length of their CoT (ties in the batch's order) and dealt in turn,
    so that little is padding and all ranks have the same to do. Pictures of one CoT stay together as far as a
    micro-batch holds them, and the policy passes their CoT once.

    A trajectory whose reward is NaN keeps its place, so that shapes do not vary, and none of its tokens counts.

    Raises LearnerError for a group whose rewards do not fit its trajectories, are infinite or all but missing, for
    groups of different sizes, and when the trajectories of a mini-batch do not divide by num_ranks x
    micro_batch_size.
    """
    rewards = rewards_of(batch)
    of_advantages = settings.advantages
    try:
        columns = columns_of(batch) if of_advantages.normalized_rewards or of_advantages.rewards_by_phase else {}
        by_phase = advantages_by_phase(rewards, columns, settings.phases, of_advantages)
    except ValueError as error:
        raise LearnerError(f"step {batch.step}: {error}") from error
    advantages = {phase: of_phase.flatten() for phase, of_phase in by_phase.items()}
    is_kept = ~rewards.isnan().flatten()
    trajectories = [trajectory for group in batch.groups for trajectory in group.rollout.trajectories]
    worker_ids = [group.rollout.worker_id for group in batch.groups for _ in group.rollout.trajectories]
    workers = tuple(sorted(set(worker_ids)))
    if len(batch.groups) % settings.num_mini_batches:
        raise LearnerError(
            f"step {batch.step}: {len(batch.groups)} groups do not divide into learner.mini_batches "
            f"{settings.num_mini_batches}"
        )
    num_sharing = _num_sharing(batch, settings.micro_batch_size)
    size = len(trajectories) // settings.num_mini_batches
    groups = torch.arange(len(trajectories)) % size // (len(trajectories) // len(batch.groups))
    learned = Learned(advantages, is_kept, torch.tensor([workers.index(worker) for worker in worker_ids]), groups)
    mini_batches = tuple(
        _mini_batch(trajectories[part], learned.part(part), settings, rank, batch.step, num_sharing)
        for part in (slice(start, start + size) for start in range(0, len(trajectories), size))
    )
    kept = [trajectory for trajectory, is_own in zip(trajectories, is_kept.tolist(), strict=True) if is_own]
    cot_lengths = torch.tensor([len(trajectory.cot_ids) for trajectory in kept])
    counts = {"cot": int(cot_lengths.sum()), "image": sum(len(trajectory.image_ids) for trajectory in kept)}
    return StepPlan(
        mini_batches=mini_batches,
        num_trajectories=len(kept),
        num_tokens_by_phase={phase: counts[phase] for phase in settings.phases},
        cot_lengths=cot_lengths,
        max_cot_tokens=settings.max_cot_tokens,
        advantages=torch.stack(list(advantages.values())).mean(dim=0)[is_kept],
        workers=workers,
        groups_without_spread=share_without_spread(rewards),
    )


def _num_sharing(batch: TrajectoryBatch, micro_batch_size: int) -> int:
    """How many trajectories, one behind the other in their group, share a CoT and can be dealt as one.

    Raises LearnerError where those that should share one do not.
    """
    num_sharing = math.gcd(micro_batch_size, *(group.rollout.request.images_per_cot for group in batch.groups))
    for group in batch.groups:
        trajectories = group.rollout.trajectories
        for index, one in enumerate(trajectories):
            first = trajectories[index - index % num_sharing]
            if not (
                np.array_equal(one.cot_ids, first.cot_ids)
                and np.array_equal(one.semantic_prompt_ids, first.semantic_prompt_ids)
            ):
                raise LearnerError(
                    f"step {batch.step}: trajectory {index} of group {group.rollout.request.sequence} has another CoT "
                    f"than the one before, though {group.rollout.request.images_per_cot} pictures are drawn from each"
                )
    return num_sharing


def _mini_batch(
    trajectories: Sequence[Trajectory],
    learned: Learned,
    settings: PlanSettings,
    rank: int,
    step: int,
    num_sharing: int,
) -> MiniBatch:
    """num_sharing: see `_num_sharing`."""
    round_size = settings.num_ranks * settings.micro_batch_size
    if len(trajectories) % round_size:
        raise LearnerError(
            f"step {step}: {len(trajectories)} trajectories do not divide by {settings.num_ranks} rank(s) x "
            f"learner.micro_batch_size {settings.micro_batch_size}"
        )
    num_tokens = torch.tensor([trajectory.num_tokens(settings.phases) for trajectory in trajectories])
    weights_of_kept, divisor = normalization(
        settings.loss_normalization,
        num_tokens[learned.is_kept],
        learned.groups[learned.is_kept],
        _max_tokens(trajectories, settings),
    )
    row_weights: Tensor | None = None
    if weights_of_kept is not None:
        row_weights = torch.zeros(len(trajectories)).masked_scatter(learned.is_kept, weights_of_kept.float())
    shared = np.arange(len(trajectories)).reshape(-1, num_sharing)
    order = np.argsort([len(one.cot_ids) for one in trajectories[::num_sharing]], kind="stable")
    micro_batches = []
    for members in shared[order].reshape(-1, round_size // num_sharing, num_sharing):
        own = members[rank :: settings.num_ranks].ravel()
        micro_batches.append(
            micro_batch(
                [trajectories[index] for index in own.tolist()],
                learned.part(own),
                None if row_weights is None else row_weights[own],
                [trajectories[index] for index in members.ravel().tolist()],
                settings.phases,
                num_sharing,
            )
        )
    return MiniBatch(tuple(micro_batches), divisor)


def _max_tokens(trajectories: Sequence[Trajectory], settings: PlanSettings) -> int:
    """The most tokens that a trajectory could count with; all pictures of a model have as many."""
    most = {"cot": settings.max_cot_tokens, "image": max(len(trajectory.image_ids) for trajectory in trajectories)}
    return sum(most[phase] for phase in settings.phases)
