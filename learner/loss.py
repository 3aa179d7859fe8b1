"""The BiCoT-GRPO loss, as pure functions of per-token tensors.

T2I-R1 (arXiv:2505.00703, section 3) trains the semantic CoT and the picture's tokens with one
GRPO objective (DeepSeekMath, arXiv:2402.03300, equation 3), averaged over all tokens together:

    J = 1/N sum over tokens [ ratio A - beta KL ],    ratio = exp(p - q)

p: log-probability under the policy; q: under the weights that sampled the token (behaviour);
r: under the reference; A: the trajectory's advantage. For image tokens all three are *conditional*,
though the token was sampled from the guided mix: q is what the ratio needs to be 1 on-policy.

All tensors here are [B, N], one phase of one micro-batch; `mask` is True at tokens that exist.
Values elsewhere never count, whatever they are. The functions return sums over tokens, for the
caller to divide by the count over all phases, micro-batches and ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Sums over the tokens of one phase of one micro-batch; divide by a token count for means."""

    loss: Tensor
    """Scalar, with gradient: sum of -(ratio A - beta KL)."""
    kl: Tensor
    """Scalar: sum of the k3 estimates of KL(policy || reference); 0 without a reference."""
    behaviour_kl: Tensor
    """Scalar: sum of the k3 estimates of KL(behaviour || policy): how far the policy has moved since sampling."""
    num_clipped: Tensor
    """Scalar: tokens whose gradient the clip removed."""
    ratio: Tensor
    """Scalar: sum of the ratios."""
    ratio_min: Tensor
    """Scalar; +inf without tokens."""
    ratio_max: Tensor
    """Scalar; -inf without tokens."""


def importance_ratio(logprobs: Tensor, behaviour_logprobs: Tensor) -> Tensor:
    """exp(p - q), per token. Exactly 1 where the policy still is the one that sampled."""
    return (logprobs - behaviour_logprobs).exp()


def k3_kl(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(r - p) - (r - p) - 1, per token: the unbiased, never negative estimator of KL(policy || reference)
    for tokens sampled by the policy (J. Schulman, "Approximating KL divergence", 2020, k3)."""
    log_ratio = reference_logprobs - logprobs
    return log_ratio.exp() - log_ratio - 1


def policy_objective(
    ratio: Tensor, advantages: Tensor, clip_low: float | None, clip_high: float | None
) -> tuple[Tensor, Tensor]:
    """min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) per token, and a bool mask of the tokens
    whose gradient the clip removed (PPO, arXiv:1707.06347, equation 7).

    A bound of None does not clip on its side; with both None this is ratio A, as T2I-R1 trains.
    """
    objective = ratio * advantages
    if clip_low is None and clip_high is None:
        return objective, torch.zeros_like(ratio, dtype=torch.bool)
    low = None if clip_low is None else 1.0 - clip_low
    high = None if clip_high is None else 1.0 + clip_high
    clipped = ratio.clamp(low, high) * advantages
    return torch.minimum(objective, clipped), clipped < objective


def bicot_grpo_terms(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    reference_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    kl_coef: float,
    clip_low: float | None = None,
    clip_high: float | None = None,
) -> LossTerms:
    """The loss of one phase of one micro-batch, with what is worth watching.

    logprobs [B, N] carries the gradient; behaviour_logprobs and reference_logprobs [B, N] are
    constants, the latter None when kl_coef is 0; advantages [B]; mask bool [B, N]. Floats share one dtype.

    Without any token all sums are 0. An infinite or NaN log-probability of a token that counts gives
    a loss or gradient that is not finite, which the engine skips; it is never clamped to look fine.

    Raises ValueError for shapes that do not fit, and for a kl_coef without a reference.
    """
    _check_shapes(logprobs, behaviour_logprobs, reference_logprobs, advantages, mask)
    if kl_coef and reference_logprobs is None:
        raise ValueError(f"kl_coef is {kl_coef}, but there are no reference_logprobs")
    rows = mask.nonzero()[:, 0]
    # Picking the tokens that count, not multiplying by 0, keeps NaN in the padding out of the gradient.
    current, behaviour = logprobs[mask], behaviour_logprobs[mask]
    ratio = importance_ratio(current, behaviour)
    objective, is_clipped = policy_objective(ratio, advantages[rows], clip_low, clip_high)
    zero = logprobs.new_zeros(())
    loss, kl_sum = -objective.sum(), zero
    if reference_logprobs is not None:
        kl = k3_kl(current, reference_logprobs[mask])
        kl_sum = kl.detach().sum()
        if kl_coef:
            loss = loss + kl_coef * kl.sum()
    fixed_ratio = ratio.detach()
    return LossTerms(
        loss=loss,
        kl=kl_sum,
        behaviour_kl=k3_kl(behaviour, current.detach()).sum(),
        num_clipped=is_clipped.sum().to(logprobs.dtype),
        ratio=fixed_ratio.sum(),
        ratio_min=fixed_ratio.min() if len(fixed_ratio) else zero + float("inf"),
        ratio_max=fixed_ratio.max() if len(fixed_ratio) else zero - float("inf"),
    )


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar sum of values [B, N] where mask [B, N] is True, whatever stands elsewhere."""
    return values[mask].sum()


def _check_shapes(
    logprobs: Tensor, behaviour: Tensor, reference: Tensor | None, advantages: Tensor, mask: Tensor
) -> None:
    if logprobs.dim() != 2:
        raise ValueError(f"logprobs must be [B, N]; got {tuple(logprobs.shape)}")
    expected = tuple(logprobs.shape)
    for name, tensor in {"behaviour_logprobs": behaviour, "reference_logprobs": reference, "mask": mask}.items():
        if tensor is not None and tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must be {expected} like logprobs; got {tuple(tensor.shape)}")
    if tuple(advantages.shape) != expected[:1]:
        raise ValueError(f"advantages must be {expected[:1]}, one a trajectory; got {tuple(advantages.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool; got {mask.dtype}")
