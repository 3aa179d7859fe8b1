"""From a step's rewards to one advantage a trajectory. Pure functions of tensors [num_groups, G].

    reward columns ─► those of normalization "group" normalised, all weighted, summed ─┐ (where any is)
    combined reward ───────────────────────────────────────────────────────────────────┴─► R ─► A = (R - mean) / spread

The default is GRPO's group advantage (DeepSeekMath, arXiv:2402.03300, section 4.1.2), as T2I-R1 has it
(arXiv:2505.00703, section 3). A group of equal R has advantages of exactly 0, in every variant: it teaches nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs.algorithm_section import AdvantageNormalization


@dataclass(frozen=True, slots=True)
class AdvantageSettings:
    """How rewards become advantages; fields as in `configs.schema.AlgorithmConfig`."""

    epsilon: float
    normalization: AdvantageNormalization = "group"
    reward_weights: Mapping[str, float] = field(default_factory=dict)
    """Reward name -> factor; only read where a reward is normalised."""
    normalized_rewards: Collection[str] = ()
    """Names of the rewards that are normalised within their group before the weighted sum."""


def advantages_of(rewards: Tensor, columns: Mapping[str, Tensor], settings: AdvantageSettings) -> Tensor:
    """The advantages [num_groups, G] of a step's trajectories.

    rewards: float [num_groups, G], the weighted sums; columns: name -> float [num_groups, G], NaN where a reward
    does not apply. Raises ValueError for shapes that do not fit, and as the functions below do.
    """
    if settings.normalized_rewards:
        weights, normalized = settings.reward_weights, settings.normalized_rewards
        rewards = sum_of_rewards(columns, weights, normalized, settings.epsilon)
    match settings.normalization:
        case "group":
            return group_advantages(rewards, settings.epsilon)
        case "group_mean_only":
            return centred_advantages(rewards)
        case "batch":
            return batch_advantages(rewards, settings.epsilon)


def group_advantages(rewards: Tensor, epsilon: float) -> Tensor:
    """A_i = (R_i - mean(R)) / (std(R) + epsilon), within each group; std is the unbiased one.

    rewards: float [num_groups, G], G >= 2, finite. Returns the same shape and dtype. A group of
    equal rewards has advantages of exactly 0: it teaches nothing.

    Raises ValueError for another shape, and for a reward that is not finite, naming its group.
    """
    return centred_advantages(rewards) / (rewards.std(dim=1, keepdim=True) + epsilon)


def centred_advantages(rewards: Tensor) -> Tensor:
    """A_i = R_i - mean(R), within each group: without the division, which favours groups that are all but solved
    or all but hopeless (Dr. GRPO, arXiv:2503.20783, section 3.2). Shapes and errors as `group_advantages`."""
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [num_groups, G] with G of 2 or more; got {tuple(rewards.shape)}")
    finite = rewards.isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ValueError(f"the rewards of group {row} are not finite: {rewards[row].tolist()}")
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # The mean of equal numbers may be off by a rounding error, which 1 / epsilon would blow up.
    return centred.masked_fill(without_spread(rewards)[:, None], 0.0)


def batch_advantages(rewards: Tensor, epsilon: float) -> Tensor:
    """A_i = (R_i - mean(R) of its group) / (std over all trajectories of the batch of that difference + epsilon).

    REINFORCE++ with a group baseline (arXiv:2501.03262, section 3.2); behind `sum_of_rewards` it is GDPO's
    batch-wise normalisation (arXiv:2601.05242). The batch's mean needs no subtraction: the groups' means are 0.
    Shapes and errors as `group_advantages`.
    """
    centred = centred_advantages(rewards)
    return centred / (centred.std() + epsilon)


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
    """bool [num_groups]: whether all rewards of a group are equal."""
    return rewards.amax(dim=1) == rewards.amin(dim=1)
