"""Trajectories that pass the policy together, as padded tensors.

    [Trajectory, ...] and what they are learned from with ─► MicroBatch: a PhaseBatch for each phase that is trained

Micro-batch j of `learner.batch` has the same padded shape on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.algorithm_section import Phase
from learner.objective.phase_tokens import PhaseTokens
from rollout.records import Float32Array, GroupRollout, Int32Array, Trajectory


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
class Learned:
    """What R trajectories are learned from with."""

    advantages: Mapping[Phase, Tensor]
    """float32 [R] each."""
    is_kept: Tensor
    """bool [R]; False: the trajectory has no reward and passes the policy without counting, as shapes must not vary."""

    workers: Tensor
    """int64 [R]: see `PhaseBatch`."""
    groups: Tensor
    """int64 [R]: the number of each one's group in its mini-batch."""

    def part(self, part: slice | NDArray[np.intp]) -> Learned:
        advantages = {phase: of_phase[part] for phase, of_phase in self.advantages.items()}
        return Learned(advantages, self.is_kept[part], self.workers[part], self.groups[part])


def phases_to_compare(rollout: GroupRollout, phases: Sequence[Phase], worker: int) -> tuple[PhaseBatch, ...]:
    """A whole group for forward passes only. worker: the place of its worker in the tables of the caller."""
    size = len(rollout.trajectories)
    nothing = {phase: torch.zeros(size) for phase in phases}
    learned = Learned(nothing, torch.ones(size, dtype=torch.bool), torch.full((size,), worker), torch.zeros(size))
    return micro_batch(rollout.trajectories, learned, None, rollout.trajectories, phases).phases


def micro_batch(
    trajectories: Sequence[Trajectory],
    learned: Learned,
    row_weights: Tensor | None,
    on_all_ranks: Sequence[Trajectory],
    phases: Sequence[Phase],
    num_sharing: int = 1,
) -> MicroBatch:
    """on_all_ranks: the trajectories that pass the policy at the same time, these among them. num_sharing: so many
    behind one another have the same CoT."""
    scales = torch.tensor([trajectory.guidance_scale for trajectory in trajectories])
    batches = []
    for phase in phases:
        tokens, behaviour, versions = _phase_tokens(phase, trajectories, on_all_ranks)
        batches.append(
            PhaseBatch(
                replace(
                    tokens,
                    target_mask=tokens.target_mask & learned.is_kept[:, None],
                    num_sharing=num_sharing if phase == "cot" else 1,
                ),
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
