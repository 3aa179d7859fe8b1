"""Importance-sampling corrections of the mismatch between engine and learner (training-inference mismatch).

Engine and learner are two programs, and give the same token under the same weights slightly different probabilities.
With a correction, the denominator of the ratio is q, recomputed by the learner before its first update with a batch,
and each token has the weight k = exp(q - mu), mu being the log-probability that the engine recorded:

    objective = weight(k) x min(ratio A, clip(ratio) A),    ratio = exp(p - q)

(the decoupled objective of AReaL, arXiv:2505.24298, equation 5; k holds staleness and rounding alike).
Pure functions of [T], the tokens that count of one phase of one micro-batch. The weights carry no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from configs.algorithm_section import MismatchCorrection
from learner.objective.policy_losses import row_means


@dataclass(frozen=True, slots=True)
class MismatchSettings:
    """Which correction, and its bounds on k."""

    correction: MismatchCorrection = "none"
    low: float = 0.5
    high: float = 2.0


def mismatch_weights(
    old_logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, settings: MismatchSettings
) -> tuple[Tensor | None, Tensor]:
    """The weight of each token, None for 1 throughout, and a bool mask of the tokens that were cut or left out.

    old_logprobs, behaviour_logprobs: [T], picked from [B, N] by mask (bool [B, N]).
    """
    log_weights = (old_logprobs - behaviour_logprobs).detach()
    match settings.correction:
        case "none":
            return None, torch.zeros_like(log_weights, dtype=torch.bool)
        case "tis":
            return truncated_weights(log_weights.exp(), settings.high)
        case "icepop":
            return icepop_weights(log_weights.exp(), settings.low, settings.high)
        case "sequence_mask":
            sequences = row_means(log_weights, mask).exp()[mask.nonzero()[:, 0]]
            return sequence_mask(sequences, settings.low, settings.high)


def truncated_weights(k: Tensor, high: float) -> tuple[Tensor, Tensor]:
    """min(k, high): truncated importance sampling, TIS (F. Yao et al., "Your efficient RL framework secretly brings
    you off-policy RL training", 2025; the truncation is Ionides', 2008). Also says which were cut."""
    return k.clamp(max=high), k > high


def icepop_weights(k: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """k where low <= k <= high, else 0: IcePop (Ring-1T, arXiv:2510.18855, its double-sided masking), which leaves
    tokens out that the two programs disagree on. Also says which were left out."""
    kept = (k >= low) & (k <= high)
    return torch.where(kept, k, 0.0), ~kept


def sequence_mask(k: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """1 where low <= k <= high, else 0, k being the geometric mean over a token's sequence: leaves whole CoTs and
    pictures out (J. Liu et al., "When speed kills stability", 2025, masked importance sampling). Also says which.

    CoT and picture are sequences of their own, judged apart: engine and learner may disagree on one alone, as where a
    kernel of the guided streams is off, and a mean over both would hide it, or throw the other away with it.
    """
    kept = (k >= low) & (k <= high)
    return kept.to(k.dtype), ~kept
