"""Metrics of one step: summed over tokens, micro-batches and ranks, divided once at the end."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from configs.algorithm_section import Phase
from learner.batch import StepPlan
from learner.objective.loss import LossTerms, masked_sum

_SUMS = ("kl", "behaviour_kl", "ratio", "num_clipped", "num_mismatched", "entropy")
_PHASES: tuple[Phase, ...] = ("cot", "image")


class StepSums:
    """Accumulates LossTerms, in float64, so that the result does not depend on the order of addition."""

    def __init__(self, device: torch.device, num_mini_batches: int = 1) -> None:
        self._sums = torch.zeros(len(_PHASES), len(_SUMS), dtype=torch.float64, device=device)
        self._losses = torch.zeros(num_mini_batches, len(_PHASES), dtype=torch.float64, device=device)
        self._divisors = [1.0] * num_mini_batches
        self._extremes = torch.full((2,), -torch.inf, dtype=torch.float64, device=device)
        """Largest ratio, and largest negated ratio."""

    def add(
        self, phase: Phase, mini_batch: int, loss_divisor: float, terms: LossTerms, entropy: Tensor, mask: Tensor
    ) -> None:
        """Count one phase of one micro-batch of a mini-batch, whose loss is divided by `loss_divisor`; entropy [B, N]
        and mask bool [B, N]."""
        values = (
            terms.kl,
            terms.behaviour_kl,
            terms.ratio,
            terms.num_clipped,
            terms.num_mismatched,
            masked_sum(entropy.detach(), mask),
        )
        row = _PHASES.index(phase)
        self._sums[row] += torch.stack(values).double()
        self._losses[mini_batch, row] += terms.loss.detach().double()
        self._divisors[mini_batch] = loss_divisor
        self._extremes = torch.maximum(self._extremes, torch.stack([terms.ratio_max, -terms.ratio_min]).double())

    def reduce_over_ranks(self) -> None:
        """Collective; after it every rank holds the whole step's sums."""
        for sums in (self._sums, self._losses):
            dist.all_reduce(sums, dist.ReduceOp.SUM)
        dist.all_reduce(self._extremes, dist.ReduceOp.MAX)

    def metrics(self, plan: StepPlan, num_updates: int = 1) -> dict[str, float]:
        """Means over tokens and over the `num_updates` epochs over the batch; over both phases where no phase is named.
        NaN for a phase that is not trained."""
        counts = {phase: max(1, count) * num_updates for phase, count in plan.num_tokens_by_phase.items()}
        both = dict(zip(_SUMS, (self._sums.sum(0) / max(1, plan.num_tokens * num_updates)).tolist(), strict=True))
        per_phase = {
            phase: dict(zip(_SUMS, (self._sums[row] / counts.get(phase, math.nan)).tolist(), strict=True))
            for row, phase in enumerate(_PHASES)
        }
        losses = [loss / divisor for loss, divisor in zip(self._losses.sum(1).tolist(), self._divisors, strict=True)]
        largest, negated_smallest = self._extremes.tolist()
        return {
            "loss": sum(losses) / (len(losses) * num_updates),
            "kl": both["kl"],
            "behaviour_kl": both["behaviour_kl"],
            "ratio/mean": both["ratio"],
            "ratio/max": largest,
            "ratio/min": -negated_smallest,
            "clip_fraction": both["num_clipped"],
            "mismatch_fraction": both["num_mismatched"],
            **{f"kl/{phase}": per_phase[phase]["kl"] for phase in _PHASES},
            **{f"entropy/{phase}": per_phase[phase]["entropy"] for phase in _PHASES},
            **{f"behaviour_kl/{phase}": per_phase[phase]["behaviour_kl"] for phase in _PHASES},
            **{f"clip_fraction/{phase}": per_phase[phase]["num_clipped"] for phase in _PHASES},
            **figures_of_plan(plan),
        }


def figures_of_plan(plan: StepPlan) -> dict[str, float]:
    """Metrics of what is learned from, before anything is."""
    is_cut = (plan.cot_lengths == plan.max_cot_tokens).double()
    return {
        "advantage/std": float(plan.advantages.std()),
        "advantage/min": float(plan.advantages.min()),
        "advantage/max": float(plan.advantages.max()),
        "groups_without_spread": plan.groups_without_spread,
        "cot_length": int(plan.cot_lengths.sum()) / plan.num_trajectories,
        "cot_length/min": float(plan.cot_lengths.min()),
        "cot_length/max": float(plan.cot_lengths.max()),
        "cot_length/clip_ratio": float(is_cut.mean()) if plan.max_cot_tokens else math.nan,
        "tokens": float(plan.num_tokens),
    }
