"""The BiCoT-GRPO loss, as pure functions of per-token tensors.

T2I-R1 (arXiv:2505.00703, section 3) trains the semantic CoT and the picture's tokens with one
GRPO objective (DeepSeekMath, arXiv:2402.03300, equation 3), averaged over all tokens together:

    J = 1/N sum over tokens [ ratio A - beta KL ],    ratio = exp(p - q)

p: log-probability under the policy; q: under the weights that sampled the token (behaviour);
r: under the reference; A: the trajectory's advantage. For image tokens all three are *conditional*,
though the token was sampled from the guided mix: q is what the ratio needs to be 1 on-policy.
(With `algorithm.policy: guided` all three are of the guided mix, for the same reason.)

The variants change one part each, and the parts compose:

    J = 1/D sum over tokens s_i [ phase_weight x w(k) x objective(ratio, A) - beta_phase KL + entropy_coef H ]

objective: `policy_losses.py`; w(k): `mismatch.py`; s_i and D: `normalization` here; A: `advantages.py`; the KL of a
token is cut at `kl_clip`.

All tensors here are [B, N], one phase of one micro-batch; `mask` is True at tokens that exist.
Values elsewhere never count, whatever they are. The functions return sums over tokens, for the
caller to divide by D, which is of all phases, micro-batches and ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs.algorithm_section import AlgorithmConfig, LossNormalization, Phase, PolicyLoss
from learner.objective.mismatch import MismatchSettings, mismatch_weights
from learner.objective.policy_losses import cispo_objective, clipped_objective, importance_ratio, sequence_ratio


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The loss of one phase's tokens; the defaults are plain policy gradient without a KL."""

    kl_coef: float = 0.0
    policy_loss: PolicyLoss = "ppo"
    clip_low: float | None = None
    clip_high: float | None = None
    weight: float = 1.0
    """Factor of the policy term alone."""
    entropy_coef: float = 0.0
    mismatch: MismatchSettings = field(default_factory=MismatchSettings)
    kl_clip: float | None = None
    """Nats at which the KL estimate of a token is cut, and pulls no more."""

    @classmethod
    def of(cls, algorithm: AlgorithmConfig, phase: Phase) -> LossSettings:
        return cls(
            kl_coef=algorithm.kl_coef_of(phase),
            kl_clip=algorithm.kl_clip,
            policy_loss=algorithm.policy_loss,
            clip_low=algorithm.clip_ratio_low,
            clip_high=algorithm.clip_ratio_high,
            weight=algorithm.cot_weight if phase == "cot" else algorithm.image_weight,
            entropy_coef=algorithm.entropy_coef,
            mismatch=MismatchSettings(algorithm.mismatch_correction, algorithm.mismatch_low, algorithm.mismatch_high),
        )


@dataclass(frozen=True, slots=True)
class TokenTensors:
    """Inputs of the loss: one phase of one micro-batch. All float tensors have the same dtype."""

    logprobs: Tensor
    """p, float [B, N], nats: under the policy, with gradient."""
    behaviour_logprobs: Tensor
    """float [B, N]: as recorded when the token was sampled."""
    advantages: Tensor
    """A, float [B]."""
    mask: Tensor
    """bool [B, N]."""
    reference_logprobs: Tensor | None = None
    """r, float [B, N]; None: no KL."""
    old_logprobs: Tensor | None = None
    """q, float [B, N], where it is not `behaviour_logprobs`: recomputed before the first update with the batch."""
    entropy: Tensor | None = None
    """H, float [B, N], nats, with gradient; needed for an entropy bonus only."""
    row_weights: Tensor | None = None
    """s, float [B]; None for 1 throughout."""


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Loss and metrics of one phase of one micro-batch, as sums over its tokens; divide by a token count for means."""

    loss: Tensor
    """Scalar, with gradient: the sum that J is the negative mean of."""
    kl: Tensor
    """Scalar: sum of the k3 estimates of KL(policy || reference), as the loss has them; 0 without a reference."""
    behaviour_kl: Tensor
    """Scalar: sum of the k3 estimates of KL(behaviour || policy): how far the policy has moved since sampling."""
    num_clipped: Tensor
    """Scalar: tokens whose gradient the clip removed, or with CISPO weakened."""
    num_mismatched: Tensor
    """Scalar: tokens that the mismatch correction cut or left out."""
    ratio: Tensor
    """Scalar: sum of the ratios exp(p - q) of tokens."""
    ratio_min: Tensor
    """Scalar; +inf without tokens."""
    ratio_max: Tensor
    """Scalar; -inf without tokens."""


def k3_kl(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(r - p) - (r - p) - 1, per token: the unbiased, never negative estimator of KL(policy || reference)
    for tokens sampled by the policy (J. Schulman, "Approximating KL divergence", 2020, k3)."""
    log_ratio = reference_logprobs - logprobs
    return log_ratio.exp() - log_ratio - 1


def _clip_kl(kl: Tensor, limit: float | None) -> Tensor:
    """kl, at most `limit`; what is not finite stays so, for the engine to see.

    Image tokens are sampled from the guided mix, and now and then one that the conditional policy has all but given up,
    where k3 is in the thousands: one such token of 8,192 was nearly the whole gradient. verl cuts at 10, too.
    """
    return kl if limit is None else torch.where(kl.isfinite(), kl.clamp(max=limit), kl)


def normalization(
    kind: LossNormalization, num_tokens: Tensor, groups: Tensor, max_tokens: int
) -> tuple[Tensor | None, float]:
    """(s, D): the weight of each trajectory's tokens, None for 1 throughout, and what the whole sum is divided by.

    num_tokens: int64 [R], tokens that count of each of the R trajectories that are averaged over; groups: int64 [R],
    the number of each one's group, from 0; max_tokens: the most that one could have. s is float64 [R].

    token      s = 1,             D = sum of num_tokens    all tokens alike (DAPO, arXiv:2503.14476, 3.3)
    group      s = 1/tokens of its group,  D = groups      all groups alike, in each its tokens (T2I-R1's code, which
                                                           averages over devices that hold a prompt each)
    sequence   s = 1/num_tokens,  D = R                    all trajectories alike (GRPO, arXiv:2402.03300, eq. 3)
    dr_grpo    s = 1,             D = R max_tokens         a constant, unlike a length (arXiv:2503.20783, 3.2)
    """
    match kind:
        case "token":
            return None, float(num_tokens.sum())
        case "group":
            of_group = torch.zeros(int(groups.max()) + 1, dtype=num_tokens.dtype).index_add_(0, groups, num_tokens)
            return 1.0 / of_group[groups].clamp(min=1).double(), float(len(set(groups.tolist())))
        case "sequence":
            return 1.0 / num_tokens.clamp(min=1).double(), float(len(num_tokens))
        case "dr_grpo":
            return None, float(len(num_tokens) * max_tokens)


def bicot_grpo_terms(tokens: TokenTensors, settings: LossSettings) -> LossTerms:
    """The loss of one phase of one micro-batch, and its metrics.

    Without any token all sums are 0. An infinite or NaN log-probability of a token that counts gives
    a loss or gradient that is not finite, which the engine skips; it is never clamped to look fine.

    Raises ValueError for shapes that do not fit, for a kl_coef without a reference, and for an
    entropy_coef without an entropy.
    """
    _check(tokens, settings)
    mask = tokens.mask
    rows = mask.nonzero()[:, 0]
    # Picking the tokens that count, not multiplying by 0, keeps NaN in the padding out of the gradient.
    current, behaviour = tokens.logprobs[mask], tokens.behaviour_logprobs[mask]
    old = behaviour if tokens.old_logprobs is None else tokens.old_logprobs[mask]
    row_weights = None if tokens.row_weights is None else tokens.row_weights[rows]
    ratio = importance_ratio(current, old)
    objective, is_clipped = _objective(current, old, ratio, tokens.advantages[rows], mask, settings)
    weights, is_mismatched = mismatch_weights(old, behaviour, mask, settings.mismatch)
    if weights is not None:
        # Not weights * objective: a token left out for an infinite weight must not leave NaN behind.
        objective = torch.where(weights > 0, weights * objective, 0.0)
    loss = -_weighted_sum(objective, row_weights)
    if settings.weight != 1.0:
        loss = settings.weight * loss
    kl_sum = tokens.logprobs.new_zeros(())
    if tokens.reference_logprobs is not None:
        kl = _clip_kl(k3_kl(current, tokens.reference_logprobs[mask]), settings.kl_clip)
        kl_sum = kl.detach().sum()
        if settings.kl_coef:
            loss = loss + settings.kl_coef * _weighted_sum(kl, row_weights)
    if settings.entropy_coef and tokens.entropy is not None:
        loss = loss - settings.entropy_coef * _weighted_sum(tokens.entropy[mask], row_weights)
    fixed_ratio, zero = ratio.detach(), tokens.logprobs.new_zeros(())
    return LossTerms(
        loss=loss,
        kl=kl_sum,
        behaviour_kl=k3_kl(behaviour, current.detach()).sum(),
        num_clipped=is_clipped.sum().to(current.dtype),
        num_mismatched=is_mismatched.sum().to(current.dtype),
        ratio=fixed_ratio.sum(),
        ratio_min=fixed_ratio.min() if len(fixed_ratio) else zero + float("inf"),
        ratio_max=fixed_ratio.max() if len(fixed_ratio) else zero - float("inf"),
    )


def _objective(
    current: Tensor, old: Tensor, ratio: Tensor, advantages: Tensor, mask: Tensor, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """The policy term of each token [T], and which the clip touched."""
    bounds = settings.clip_low, settings.clip_high
    match settings.policy_loss:
        case "ppo":
            return clipped_objective(ratio, advantages, *bounds)
        case "gspo":
            return clipped_objective(sequence_ratio(current, old, mask), advantages, *bounds)
        case "cispo":
            return cispo_objective(current, ratio, advantages, *bounds)


def _weighted_sum(values: Tensor, row_weights: Tensor | None) -> Tensor:
    return values.sum() if row_weights is None else (row_weights * values).sum()


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar sum of values [B, N] where mask [B, N] is True, whatever stands elsewhere."""
    return values[mask].sum()


def _check(tokens: TokenTensors, settings: LossSettings) -> None:
    if tokens.logprobs.dim() != 2:
        raise ValueError(f"logprobs must be [B, N]; got {tuple(tokens.logprobs.shape)}")
    expected = tuple(tokens.logprobs.shape)
    for name in ("behaviour_logprobs", "reference_logprobs", "old_logprobs", "entropy", "mask"):
        tensor: Tensor | None = getattr(tokens, name)
        if tensor is not None and tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must be {expected} like logprobs; got {tuple(tensor.shape)}")
    for name in ("advantages", "row_weights"):
        tensor = getattr(tokens, name)
        if tensor is not None and tuple(tensor.shape) != expected[:1]:
            raise ValueError(f"{name} must be {expected[:1]}, one a trajectory; got {tuple(tensor.shape)}")
    if tokens.mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool; got {tokens.mask.dtype}")
    if settings.kl_coef and tokens.reference_logprobs is None:
        raise ValueError(f"kl_coef is {settings.kl_coef}, but there are no reference_logprobs")
    if settings.entropy_coef and tokens.entropy is None:
        raise ValueError(f"entropy_coef is {settings.entropy_coef}, but there is no entropy")
