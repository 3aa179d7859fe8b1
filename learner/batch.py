"""From the groups of one step to each rank's padded micro-batches.

    TrajectoryBatch ─► advantages of whole groups ─► mini-batches of whole groups, one an optimizer update
                          each ─► trajectories by length, dealt to ranks ─► MicroBatch, ...

Every rank holds the whole TrajectoryBatch, computes the same plan and takes its own share, so
nothing needs to be exchanged: not the advantages, not the token count that the loss divides by.
Micro-batch j has the same padded shape on every rank, as ZeRO-3 demands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.algorithm_section import LossNormalization, Phase
from configs.errors import LearnerError
from configs.schema import RunConfig
from learner.objective import AdvantageSettings
from learner.objective.advantages import advantages_by_phase, share_without_spread
from learner.objective.group_rewards import columns_of, rewards_of
from learner.objective.loss import normalization
from learner.objective.phase_tokens import PhaseTokens
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
    """Only for loss_normalization "dr_grpo"."""

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
class PhaseBatch:
    """One phase of one micro-batch of B trajectories."""

    tokens: PhaseTokens
    behaviour_logprobs: Tensor
    """float32 [B, N], nats; 0 where the mask is False."""
    advantages: Tensor
    """float32 [B]."""
    row_weights: Tensor | None
    """float32 [B]: weight of each trajectory's tokens in the loss; None for 1 throughout."""
    guidance_scales: Tensor
    """float32 [B]: what the pictures were drawn with."""
    versions: Tensor
    """int64 [B]: the weight version that sampled all of a trajectory; -1 where there were several."""

    def to(self, device: torch.device) -> PhaseBatch:
        return PhaseBatch(
            self.tokens.to(device),
            self.behaviour_logprobs.to(device),
            self.advantages.to(device),
            None if self.row_weights is None else self.row_weights.to(device),
            self.guidance_scales.to(device),
            self.versions.to(device),
        )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Trajectories that pass the policy together, a phase at a time."""

    phases: tuple[PhaseBatch, ...]
    """Those that are trained: CoT, then image."""


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
    advantages: Tensor
    """float32 [num_trajectories]."""
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
    so that little is padding and all ranks have the same to do.

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
    if len(batch.groups) % settings.num_mini_batches:
        raise LearnerError(
            f"step {batch.step}: {len(batch.groups)} groups do not divide into learner.mini_batches "
            f"{settings.num_mini_batches}"
        )
    size = len(trajectories) // settings.num_mini_batches
    mini_batches = tuple(
        _mini_batch(trajectories[part], _Learned.of(advantages, is_kept, part), settings, rank, batch.step)
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
        advantages=torch.stack(list(advantages.values())).mean(dim=0)[is_kept],
        groups_without_spread=share_without_spread(rewards),
    )


@dataclass(frozen=True, slots=True)
class _Learned:
    """What R trajectories are learned from with."""

    advantages: Mapping[Phase, Tensor]
    """float32 [R] each."""
    is_kept: Tensor
    """bool [R]; False: the trajectory has no reward and passes the policy without counting, as shapes must not vary."""

    @classmethod
    def of(cls, advantages: Mapping[Phase, Tensor], is_kept: Tensor, part: slice | NDArray[np.intp]) -> _Learned:
        return cls({phase: of_phase[part] for phase, of_phase in advantages.items()}, is_kept[part])


def _mini_batch(
    trajectories: Sequence[Trajectory], learned: _Learned, settings: PlanSettings, rank: int, step: int
) -> MiniBatch:
    round_size = settings.num_ranks * settings.micro_batch_size
    if len(trajectories) % round_size:
        raise LearnerError(
            f"step {step}: {len(trajectories)} trajectories do not divide by {settings.num_ranks} rank(s) x "
            f"learner.micro_batch_size {settings.micro_batch_size}"
        )
    num_tokens = torch.tensor([trajectory.num_tokens(settings.phases) for trajectory in trajectories])
    weights_of_kept, divisor = normalization(
        settings.loss_normalization, num_tokens[learned.is_kept], _max_tokens(trajectories, settings)
    )
    row_weights: Tensor | None = None
    if weights_of_kept is not None:
        row_weights = torch.zeros(len(trajectories)).masked_scatter(learned.is_kept, weights_of_kept.float())
    order = np.argsort([len(trajectory.cot_ids) for trajectory in trajectories], kind="stable")
    micro_batches = []
    for members in order.reshape(-1, round_size):
        own = members[rank :: settings.num_ranks]
        micro_batches.append(
            _micro_batch(
                [trajectories[index] for index in own],
                _Learned.of(learned.advantages, learned.is_kept, own),
                None if row_weights is None else row_weights[own],
                _Widths.of([trajectories[index] for index in members]),
                settings.phases,
            )
        )
    return MiniBatch(tuple(micro_batches), divisor)


def _max_tokens(trajectories: Sequence[Trajectory], settings: PlanSettings) -> int:
    """The most tokens that a trajectory could count with; all pictures of a model have as many."""
    most = {"cot": settings.max_cot_tokens, "image": max(len(trajectory.image_ids) for trajectory in trajectories)}
    return sum(most[phase] for phase in settings.phases)


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


def _micro_batch(
    trajectories: Sequence[Trajectory],
    learned: _Learned,
    row_weights: Tensor | None,
    widths: _Widths,
    phases: Sequence[Phase],
) -> MicroBatch:
    scales = torch.tensor([trajectory.guidance_scale for trajectory in trajectories])
    versions = torch.tensor([_version(trajectory) for trajectory in trajectories])
    batches = []
    for phase in phases:
        tokens, behaviour = (_cot_tokens if phase == "cot" else _image_tokens)(trajectories, widths)
        tokens = replace(tokens, target_mask=tokens.target_mask & learned.is_kept[:, None])
        batches.append(PhaseBatch(tokens, behaviour, learned.advantages[phase], row_weights, scales, versions))
    return MicroBatch(tuple(batches))


def _version(trajectory: Trajectory) -> int:
    same = trajectory.oldest_weight_version == trajectory.newest_weight_version
    return trajectory.newest_weight_version if same else -1


def _cot_tokens(trajectories: Sequence[Trajectory], widths: _Widths) -> tuple[PhaseTokens, Tensor]:
    """The CoTs of a micro-batch and their behaviour log-probabilities."""
    ids, lengths = right_pad([trajectory.cot_ids for trajectory in trajectories], widths.cot)
    behaviour, _ = right_pad([trajectory.cot_logprobs for trajectory in trajectories], widths.cot)
    contexts = right_pad([trajectory.semantic_prompt_ids for trajectory in trajectories], widths.semantic_prompt)
    return PhaseTokens("cot", *contexts, ids, _mask(lengths, widths.cot)), behaviour


def _image_tokens(trajectories: Sequence[Trajectory], widths: _Widths) -> tuple[PhaseTokens, Tensor]:
    """The pictures of a micro-batch and their behaviour log-probabilities."""
    ids, lengths = right_pad([trajectory.image_ids for trajectory in trajectories], widths.image)
    behaviour, _ = right_pad([trajectory.image_logprobs for trajectory in trajectories], widths.image)
    contexts = right_pad([trajectory.image_prompt_ids for trajectory in trajectories], widths.image_prompt)
    return PhaseTokens("image", *contexts, ids, _mask(lengths, widths.image)), behaviour


def right_pad(sequences: Sequence[NDArray[np.int32] | NDArray[np.float32]], width: int) -> tuple[Tensor, Tensor]:
    """(padded with 0 [B, width], lengths int64 [B]); int32 becomes int64, float32 stays."""
    dtype = np.float32 if np.issubdtype(sequences[0].dtype, np.floating) else np.int64
    padded = np.zeros((len(sequences), width), dtype)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return torch.from_numpy(padded), torch.tensor([len(sequence) for sequence in sequences])


def _mask(lengths: Tensor, width: int) -> Tensor:
    return torch.arange(width) < lengths[:, None]
