"""One phase of some trajectories as tensors, and what is asked about it: the input of the policy. No model here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PhaseTokens:
    """One phase of B trajectories, right padded. Produced by `learner.batch`; consumed by `learner.janus_policy`."""

    phase: Literal["cot", "image"]
    context_ids: Tensor
    """int64 [B, P]: text ids of the context; what lies past its length is ignored."""
    context_lengths: Tensor
    """int64 [B], each in [1, P]."""
    target_ids: Tensor
    """int64 [B, N]: text ids of the CoT, or VQ codes; valid ids where the mask is False, too."""
    target_mask: Tensor
    """bool [B, N]: True at the tokens that exist."""
    num_sharing: int = 1
    """So many trajectories behind one another have the same context and targets, as pictures of one CoT have that CoT:
    the policy passes them once. Divides B."""

    def first_rows(self, count: int) -> PhaseTokens:
        """Of its trajectories the first so many."""
        first = self._with_each(lambda tensor: tensor[:count])
        return replace(first, num_sharing=math.gcd(count, self.num_sharing))

    def distinct(self) -> PhaseTokens:
        """One row of each that are shared; [B / num_sharing, ...]."""
        return replace(self._with_each(lambda tensor: tensor[:: self.num_sharing]), num_sharing=1)

    def to(self, device: torch.device) -> PhaseTokens:
        return self._with_each(lambda tensor: tensor.to(device))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> PhaseTokens:
        return replace(
            self,
            context_ids=change(self.context_ids),
            context_lengths=change(self.context_lengths),
            target_ids=change(self.target_ids),
            target_mask=change(self.target_mask),
        )


@dataclass(frozen=True, slots=True)
class LogprobRequest:
    """What `JanusPolicy` is asked: under which distribution to score the targets of `tokens`.

    With neither `unconditional_rows` nor `guidance_scales` it is the conditional one. Raises ValueError for both at
    once, and for either with the phase `cot`, which has one stream only.
    """

    tokens: PhaseTokens
    unconditional_rows: Tensor | None = None
    """bool [B]: these pictures are scored without their prompt. Every context token but BOS and begin-of-image
    becomes the pad token, still attended to, as in the unconditional stream of classifier-free guidance."""
    guidance_scales: Tensor | None = None
    """float [B]: the guided distribution that engines sample from, `softmax((u + w (c - u)) / temperature)`."""
    temperature: float = 1.0
    entropy_gradient: bool = False
    """Whether the entropy carries a gradient, as an entropy bonus needs it."""

    def __post_init__(self) -> None:
        if self.unconditional_rows is not None and self.guidance_scales is not None:
            raise ValueError("unconditional_rows and guidance_scales exclude each other: guidance has both streams")
        if self.tokens.phase == "cot" and not (self.unconditional_rows is None and self.guidance_scales is None):
            raise ValueError(
                "a CoT has no unconditional stream; unconditional_rows and guidance_scales are for pictures"
            )
        if self.tokens.phase == "image" and self.tokens.num_sharing != 1:
            raise ValueError("num_sharing is for CoTs: every picture is one of its own")
