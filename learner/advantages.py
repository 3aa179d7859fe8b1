"""Group-relative advantages (GRPO: DeepSeekMath, arXiv:2402.03300, section 4.1.2), as T2I-R1 computes
them (arXiv:2505.00703, section 3)."""

from __future__ import annotations

from torch import Tensor


def group_advantages(rewards: Tensor, epsilon: float) -> Tensor:
    """A_i = (R_i - mean(R)) / (std(R) + epsilon), within each group; std is the unbiased one.

    rewards: float [num_groups, G], G >= 2, finite. Returns the same shape and dtype. A group of
    equal rewards has advantages of exactly 0: it teaches nothing.

    Raises ValueError for another shape, and for a reward that is not finite, naming its group.
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [num_groups, G] with G of 2 or more; got {tuple(rewards.shape)}")
    finite = rewards.isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ValueError(f"the rewards of group {row} are not finite: {rewards[row].tolist()}")
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # The mean of equal numbers may be off by a rounding error, which 1 / epsilon would blow up.
    centred = centred.masked_fill(_without_spread(rewards)[:, None], 0.0)
    return centred / (rewards.std(dim=1, keepdim=True) + epsilon)


def share_without_spread(rewards: Tensor) -> float:
    """Share of groups whose rewards are all equal. rewards: float [num_groups, G]."""
    return float(_without_spread(rewards).float().mean())


def _without_spread(rewards: Tensor) -> Tensor:
    """bool [num_groups]."""
    return rewards.amax(dim=1) == rewards.amin(dim=1)
