"""Policy-gradient objectives of the importance-sampling ratio between new and old policy: PPO, GSPO and CISPO.

    ratio ──────────┬─► clipped_objective   (PPO)        per token
    sequence_ratio ─┘   (GSPO: the same of a whole sequence)
    ratio ────────────► cispo_objective                  a clipped weight on the policy gradient

Pure functions. [T] stands for the tokens that count of one phase of one micro-batch, picked out of
[B, N] by a mask; p is the log-probability under the policy that trains, q that under the old one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """exp(p - q), per token. Exactly 1 where the policy still is the old one."""
    return (logprobs - old_logprobs).exp()


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """exp(mean over the sequence's tokens of (p - q)), given to each of its tokens: the geometric mean of the ratios.

    GSPO (arXiv:2507.18071, equation 7). A sequence is one phase of a trajectory: its semantic CoT, or its picture.
    In one mean over both the picture's hundreds of tokens would decide about the CoT's few dozen, and its clip, too.
    logprobs, old_logprobs: [T], picked from [B, N] by mask (bool [B, N]). Returns [T]; the gradient flows
    through all tokens of a sequence.
    """
    means = row_means(logprobs - old_logprobs, mask)
    return means.exp()[mask.nonzero()[:, 0]]


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """[B]: means of values [T] over the rows of the mask (bool [B, N]) that picked them; 0 for a row without any."""
    placed = values.new_zeros(mask.shape).masked_scatter(mask, values)
    return placed.sum(1) / mask.sum(1).clamp(min=1)


def clipped_objective(
    ratio: Tensor, advantages: Tensor, clip_low: float | None, clip_high: float | None
) -> tuple[Tensor, Tensor]:
    """min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) per token, and a bool mask of the tokens
    whose gradient the clip removed (PPO, arXiv:1707.06347, equation 7).

    Bounds of their own on each side are DAPO's clip-higher (arXiv:2503.14476, section 3.1). A bound of None does
    not clip on its side; with both None this is ratio A, as T2I-R1 trains.
    """
    objective = ratio * advantages
    if clip_low is None and clip_high is None:
        return objective, torch.zeros_like(ratio, dtype=torch.bool)
    clipped = _clip(ratio, clip_low, clip_high) * advantages
    return torch.minimum(objective, clipped), clipped < objective


def cispo_objective(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, clip_low: float | None, clip_high: float | None
) -> tuple[Tensor, Tensor]:
    """sg(clip(ratio, 1 - clip_low, 1 + clip_high)) A p per token, and a bool mask of the tokens whose weight was cut.

    CISPO (MiniMax-M1, arXiv:2506.13585, equations 4 and 5): the clip bounds the weight of a token's gradient, but
    removes no token's. sg: without gradient. A bound of None does not clip on its side.
    """
    fixed = ratio.detach()
    weight = fixed if clip_low is None and clip_high is None else _clip(fixed, clip_low, clip_high)
    return weight * advantages * logprobs, weight != fixed


def _clip(ratio: Tensor, clip_low: float | None, clip_high: float | None) -> Tensor:
    return ratio.clamp(None if clip_low is None else 1.0 - clip_low, None if clip_high is None else 1.0 + clip_high)
