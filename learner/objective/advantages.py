"""From a step's rewards to one advantage a trajectory. Pure functions of tensors [num_groups, G].

    reward columns ─► those of normalization "group" normalised, all weighted, summed ─┐ (where any is)
    combined reward ───────────────────────────────────────────────────────────────────┴─► R ─► A = (R - mean) / spread

The default is GRPO's group advantage (DeepSeekMath, arXiv:2402.03300, section 4.1.2), as T2I-R1 has it
(arXiv:2505.00703, section 3). A group of equal R has advantages of exactly 0, in every variant: it teaches nothing.

R is NaN where a picture could not be scored. Such a trajectory is left out: its group's mean and spread are those of
the others, and its own advantage is 0. Where rewards train one phase only, each phase has an R and an A of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs.algorithm_section import AdvantageNormalization, Phase


@dataclass(frozen=True, slots=True)
class AdvantageSettings:
    """How rewards become advantages; fields as in `configs.schema.AlgorithmConfig`."""

    epsilon: float
    normalization: AdvantageNormalization = "group"
    reward_weights: Mapping[str, float] = field(default_factory=dict)
    """Reward name -> factor; only read where a reward is normalised."""
    normalized_rewards: Collection[str] = ()
    """Names of the rewards that are normalised within their group before the weighted sum."""
    rewards_by_phase: Mapping[Phase, Collection[str]] = field(default_factory=dict)
    """Phase -> names of the rewards that train its tokens; empty where every reward trains every phase."""


def advantages_by_phase(
    rewards: Tensor, columns: Mapping[str, Tensor], phases: Sequence[Phase], settings: AdvantageSettings
) -> dict[Phase, Tensor]:
    """Phase -> advantages [num_groups, G], of the rewards that train this phase's tokens. As `advantages_of`."""
    if not settings.rewards_by_phase:
        return dict.fromkeys(phases, advantages_of(rewards, columns, settings))
    advantages: dict[Phase, Tensor] = {}
    for phase in phases:
        names = settings.rewards_by_phase[phase]
        weights = {name: settings.reward_weights[name] for name in names}
        normalized = frozenset(settings.normalized_rewards) & weights.keys()
        total = sum_of_rewards(_among(columns, weights, rewards), weights, normalized, settings.epsilon)
        advantages[phase] = _normalize(total.masked_fill(rewards.isnan(), torch.nan), settings)
    return advantages


def advantages_of(rewards: Tensor, columns: Mapping[str, Tensor], settings: AdvantageSettings) -> Tensor:
    """The advantages [num_groups, G] of a step's trajectories.

    rewards: float [num_groups, G], the weighted sums, NaN for a trajectory that is left out; columns: name -> float
    [num_groups, G], NaN where a reward does not apply. Raises ValueError for shapes that do not fit, and as the
    functions below do.
    """
    if settings.normalized_rewards:
        weights, normalized = settings.reward_weights, settings.normalized_rewards
        total = sum_of_rewards(_among(columns, weights, rewards), weights, normalized, settings.epsilon)
        rewards = total.masked_fill(rewards.isnan(), torch.nan)
    return _normalize(rewards, settings)


def _among(columns: Mapping[str, Tensor], names: Collection[str], rewards: Tensor) -> dict[str, Tensor]:
    """The columns of these names; NaN where the trajectory is left out, so that it is no part of a mean."""
    return {name: column.masked_fill(rewards.isnan(), torch.nan) for name, column in columns.items() if name in names}


def _normalize(rewards: Tensor, settings: AdvantageSettings) -> Tensor:
    match settings.normalization:
        case "group":
            return group_advantages(rewards, settings.epsilon)
        case "group_mean_only":
            return centred_advantages(rewards)
        case "batch":
            return batch_advantages(rewards, settings.epsilon)


def group_advantages(rewards: Tensor, epsilon: float) -> Tensor:
    """A_i = (R_i - mean(R)) / (std(R) + epsilon), within each group; std is the unbiased one.

    rewards: float [num_groups, G], G >= 2, finite, or NaN for a trajectory that is left out. Returns the same shape
    and dtype. A group of equal rewards has advantages of exactly 0: it teaches nothing.

    Raises ValueError for another shape, for an infinite reward, and for a group of which fewer than two trajectories
    are left, naming the group.
    """
    centred = centred_advantages(rewards)
    left_out = rewards.isnan()
    if not left_out.any():
        return centred / (rewards.std(dim=1, keepdim=True) + epsilon)
    num_others = (~left_out).sum(dim=1, keepdim=True) - 1
    return centred / ((centred.square().sum(dim=1, keepdim=True) / num_others).sqrt() + epsilon)


def centred_advantages(rewards: Tensor) -> Tensor:
    """A_i = R_i - mean(R), within each group: without the division, which favours groups that are all but solved
    or all but hopeless (Dr. GRPO, arXiv:2503.20783, section 3.2). Shapes and errors as `group_advantages`."""
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [num_groups, G] with G of 2 or more; got {tuple(rewards.shape)}")
    left_out = rewards.isnan()
    wrong = rewards.isinf().any(dim=1) | ((~left_out).sum(dim=1) < 2)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"the rewards of group {row} are infinite, or fewer than two are left: {rewards[row].tolist()}"
        )
    mean = rewards.nanmean(dim=1, keepdim=True) if left_out.any() else rewards.mean(dim=1, keepdim=True)
    # The mean of equal numbers may be off by a rounding error, which 1 / epsilon would blow up.
    return (rewards - mean).masked_fill(without_spread(rewards)[:, None] | left_out, 0.0)


def batch_advantages(rewards: Tensor, epsilon: float) -> Tensor:
    """A_i = (R_i - mean(R) of its group) / (std over all trajectories of the batch of that difference + epsilon).

    REINFORCE++ with a group baseline (arXiv:2501.03262, section 3.2); behind `sum_of_rewards` it is GDPO's
    batch-wise normalisation (arXiv:2601.05242). The batch's mean needs no subtraction: the groups' means are 0.
    Shapes and errors as `group_advantages`.
    """
    centred = centred_advantages(rewards)
    return centred / (centred[~rewards.isnan()].std() + epsilon)


def sum_of_rewards(
    columns: Mapping[str, Tensor], weights: Mapping[str, float], normalized: Collection[str], epsilon: float
) -> Tensor:
    """R_i = sum over the rewards k that apply of weight_k f_k(r_k,i), by group.

    f_k(r) = (r - mean(r_k)) / (std(r_k) + epsilon)    for k in `normalized`
    f_k(r) = r                                         else

    The former is GDPO's group-wise decoupled normalisation (arXiv:2601.05242): a reward of a tiny range is heard as
    loudly as the others, in the proportion of the weights. Mean and unbiased std of a reward are over the trajectories
    of the group that it applies to (not NaN); where these are fewer than two or all equal, it adds 0. The latter
    keeps the size of differences: a reward is loud in groups where it differs much, and next to silent in others.

    columns: name -> float [num_groups, G]; weights: name -> factor, of the same names. Returns [num_groups, G].
    Raises ValueError when names or shapes differ, and for an infinite reward.
    """
    if columns.keys() != weights.keys() or not columns or not columns.keys() >= set(normalized):
        raise ValueError(
            f"rewards {sorted(columns)} and weights {sorted(weights)} must have the same names, and those that are "
            f"normalised, {sorted(normalized)}, be among them"
        )
    shapes = {name: tuple(column.shape) for name, column in columns.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"all rewards must be [num_groups, G] alike; got {shapes}")
    infinite = [name for name, column in columns.items() if column.isinf().any()]
    if infinite:
        raise ValueError(f"reward {infinite[0]} is infinite for a trajectory")
    terms = [
        weights[name] * (_normalized(column, epsilon) if name in normalized else column.nan_to_num(0.0))
        for name, column in columns.items()
    ]
    return torch.stack(terms).sum(0)


def _normalized(column: Tensor, epsilon: float) -> Tensor:
    """0 where the reward does not apply."""
    applies = ~column.isnan()
    count = applies.sum(1, keepdim=True)
    values = column.nan_to_num(0.0)
    centred = (values - values.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(~applies, 0.0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    largest = values.masked_fill(~applies, -torch.inf).amax(1, keepdim=True)
    smallest = values.masked_fill(~applies, torch.inf).amin(1, keepdim=True)
    return (centred / (std + epsilon)).masked_fill(largest <= smallest, 0.0)


def share_without_spread(rewards: Tensor) -> float:
    """Share of groups whose rewards are all equal. rewards: float [num_groups, G]."""
    return float(without_spread(rewards).float().mean())


def without_spread(rewards: Tensor) -> Tensor:
    """bool [num_groups]: whether all rewards of a group are equal, but for those left out."""
    left_out = rewards.isnan()
    largest = rewards.masked_fill(left_out, -torch.inf).amax(dim=1)
    return largest <= rewards.masked_fill(left_out, torch.inf).amin(dim=1)
