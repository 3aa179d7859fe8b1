"""From the groups of one step to each rank's padded micro-batches.

    TrajectoryBatch ─► advantages of whole groups ─► mini-batches of whole groups, one an optimizer update
                          each ─► trajectories by length, dealt to ranks ─► MicroBatch, ...

Every rank holds the whole TrajectoryBatch, computes the same plan and takes its own share, so
nothing needs to be exchanged: not the advantages, not the token count that the loss divides by.
Micro-batch j has the same padded shape on every rank, as ZeRO-3 demands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

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
from rollout.records import Float32Array, GroupRollout, Int32Array, Trajectory, TrajectoryBatch


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
    """int64 [B, N]: the weight version that sampled each token; 0 where the mask is False."""
    versions_of_all_ranks: frozenset[int]
    """Of the tokens of this phase and micro-batch on all ranks, so that all decide alike what to compute."""
    workers: Tensor
    """int64 [B]: the place in `StepPlan.workers` of the rollout worker that sampled each."""

    def first_rows(self, count: int) -> PhaseBatch:
        """Of its trajectories the first so many."""
        return self._with_each(lambda tensor: tensor[:count], self.tokens.first_rows(count))

    def to(self, device: torch.device) -> PhaseBatch:
        return self._with_each(lambda tensor: tensor.to(device), self.tokens.to(device))

    def _with_each(self, change: Callable[[Tensor], Tensor], tokens: PhaseTokens) -> PhaseBatch:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, tokens=tokens, **changed)


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
    worker_ids = [group.rollout.worker_id for group in batch.groups for _ in group.rollout.trajectories]
    workers = tuple(sorted(set(worker_ids)))
    if len(batch.groups) % settings.num_mini_batches:
        raise LearnerError(
            f"step {batch.step}: {len(batch.groups)} groups do not divide into learner.mini_batches "
            f"{settings.num_mini_batches}"
        )
    size = len(trajectories) // settings.num_mini_batches
    groups = torch.arange(len(trajectories)) % size // (len(trajectories) // len(batch.groups))
    learned = _Learned(advantages, is_kept, torch.tensor([workers.index(worker) for worker in worker_ids]), groups)
    mini_batches = tuple(
        _mini_batch(trajectories[part], learned.part(part), settings, rank, batch.step)
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


@dataclass(frozen=True, slots=True)
class _Learned:
    """What R trajectories are learned from with."""

    advantages: Mapping[Phase, Tensor]
    """float32 [R] each."""
    is_kept: Tensor
    """bool [R]; False: the trajectory has no reward and passes the policy without counting, as shapes must not vary."""

    workers: Tensor
    """int64 [R]: see `PhaseBatch`."""
    groups: Tensor
    """int64 [R]: the number of each one's group in its mini-batch."""

    def part(self, part: slice | NDArray[np.intp]) -> _Learned:
        advantages = {phase: of_phase[part] for phase, of_phase in self.advantages.items()}
        return _Learned(advantages, self.is_kept[part], self.workers[part], self.groups[part])


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
        settings.loss_normalization,
        num_tokens[learned.is_kept],
        learned.groups[learned.is_kept],
        _max_tokens(trajectories, settings),
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
                learned.part(own),
                None if row_weights is None else row_weights[own],
                [trajectories[index] for index in members],
                settings.phases,
            )
        )
    return MiniBatch(tuple(micro_batches), divisor)


def phases_to_compare(rollout: GroupRollout, phases: Sequence[Phase], worker: int) -> tuple[PhaseBatch, ...]:
    """A whole group for forward passes only. worker: the place of its worker in the tables of the caller."""
    size = len(rollout.trajectories)
    nothing = {phase: torch.zeros(size) for phase in phases}
    learned = _Learned(nothing, torch.ones(size, dtype=torch.bool), torch.full((size,), worker), torch.zeros(size))
    return _micro_batch(rollout.trajectories, learned, None, rollout.trajectories, phases).phases


def _max_tokens(trajectories: Sequence[Trajectory], settings: PlanSettings) -> int:
    """The most tokens that a trajectory could count with; all pictures of a model have as many."""
    most = {"cot": settings.max_cot_tokens, "image": max(len(trajectory.image_ids) for trajectory in trajectories)}
    return sum(most[phase] for phase in settings.phases)


def _micro_batch(
    trajectories: Sequence[Trajectory],
    learned: _Learned,
    row_weights: Tensor | None,
    on_all_ranks: Sequence[Trajectory],
    phases: Sequence[Phase],
) -> MicroBatch:
    """on_all_ranks: the trajectories that pass the policy at the same time, these among them."""
    scales = torch.tensor([trajectory.guidance_scale for trajectory in trajectories])
    batches = []
    for phase in phases:
        tokens, behaviour, versions = _phase_tokens(phase, trajectories, on_all_ranks)
        batches.append(
            PhaseBatch(
                replace(tokens, target_mask=tokens.target_mask & learned.is_kept[:, None]),
                behaviour,
                learned.advantages[phase],
                row_weights,
                scales,
                versions,
                frozenset(version for one in on_all_ranks for version in _sequences(one, phase)[3].tolist()),
                learned.workers,
            )
        )
    return MicroBatch(tuple(batches))


def _phase_tokens(
    phase: Phase, trajectories: Sequence[Trajectory], on_all_ranks: Sequence[Trajectory]
) -> tuple[PhaseTokens, Tensor, Tensor]:
    """The tokens of a phase with their contexts, their behaviour log-probabilities, and their weight versions, padded
    to the longest ones of all ranks."""
    contexts, ids, logprobs, versions = map(list, zip(*(_sequences(one, phase) for one in trajectories), strict=True))
    context_width, width = (max(len(_sequences(one, phase)[column]) for one in on_all_ranks) for column in (0, 1))
    padded_ids, lengths = right_pad(ids, width)
    tokens = PhaseTokens(phase, *right_pad(contexts, context_width), padded_ids, _mask(lengths, width))
    return tokens, right_pad(logprobs, width)[0], right_pad(versions, width)[0]


def _sequences(one: Trajectory, phase: Phase) -> tuple[Int32Array, Int32Array, Float32Array, Int32Array]:
    """Context, tokens, behaviour log-probabilities and weight versions of a phase."""
    if phase == "cot":
        return one.semantic_prompt_ids, one.cot_ids, one.cot_logprobs, one.whole_versions(phase)
    return one.image_prompt_ids, one.image_ids, one.image_logprobs, one.whole_versions(phase)


def right_pad(sequences: Sequence[NDArray[np.int32] | NDArray[np.float32]], width: int) -> tuple[Tensor, Tensor]:
    """(padded with 0 [B, width], lengths int64 [B]); int32 becomes int64, float32 stays."""
    dtype = np.float32 if np.issubdtype(sequences[0].dtype, np.floating) else np.int64
    padded = np.zeros((len(sequences), width), dtype)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return torch.from_numpy(padded), torch.tensor([len(sequence) for sequence in sequences])


def _mask(lengths: Tensor, width: int) -> Tensor:
    return torch.arange(width) < lengths[:, None]
