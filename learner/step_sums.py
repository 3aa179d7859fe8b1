"""Metrics of one optimizer step: summed over tokens, micro-batches and ranks, divided once at the end."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from learner.batch import StepPlan
from learner.loss import LossTerms, masked_sum

_SUMS = ("loss", "kl", "behaviour_kl", "ratio", "num_clipped", "entropy")
_PHASES = ("cot", "image")


class StepSums:
    """Collects LossTerms. Float64, so that the order of adding does not show."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_PHASES), len(_SUMS), dtype=torch.float64, device=device)
        self._extremes = torch.full((2,), -torch.inf, dtype=torch.float64, device=device)
        """Largest ratio, and largest negated ratio."""

    def add(self, phase: Literal["cot", "image"], terms: LossTerms, entropy: Tensor, mask: Tensor) -> None:
        """Count one phase of one micro-batch; entropy [B, N] and mask bool [B, N]."""
        values = (
            terms.loss.detach(),
            terms.kl,
            terms.behaviour_kl,
            terms.ratio,
            terms.num_clipped,
            masked_sum(entropy, mask),
        )
        self._sums[_PHASES.index(phase)] += torch.stack(values).double()
        self._extremes = torch.maximum(self._extremes, torch.stack([terms.ratio_max, -terms.ratio_min]).double())

    def reduce_over_ranks(self) -> None:
        """Collective; after it every rank holds the whole step's sums."""
        dist.all_reduce(self._sums, dist.ReduceOp.SUM)
        dist.all_reduce(self._extremes, dist.ReduceOp.MAX)

    def metrics(self, plan: StepPlan) -> dict[str, float]:
        """Means over tokens; of both phases together where no phase is named."""
        both = dict(zip(_SUMS, (self._sums.sum(0) / plan.num_tokens).tolist(), strict=True))
        counts = (plan.num_cot_tokens, plan.num_image_tokens)
        per_phase = {
            phase: dict(zip(_SUMS, (self._sums[row] / max(1, counts[row])).tolist(), strict=True))
            for row, phase in enumerate(_PHASES)
        }
        largest, negated_smallest = self._extremes.tolist()
        return {
            "loss": both["loss"],
            "kl": both["kl"],
            **{f"kl/{phase}": per_phase[phase]["kl"] for phase in _PHASES},
            **{f"entropy/{phase}": per_phase[phase]["entropy"] for phase in _PHASES},
            "behaviour_kl": both["behaviour_kl"],
            "ratio/mean": both["ratio"],
            "ratio/max": largest,
            "ratio/min": -negated_smallest,
            "clip_fraction": both["num_clipped"],
            "advantage/std": plan.advantage_std,
            "groups_without_spread": plan.groups_without_spread,
            "cot_length": plan.num_cot_tokens / plan.num_trajectories,
            "tokens": float(plan.num_tokens),
        }
