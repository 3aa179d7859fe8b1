"""One phase of some trajectories as tensors: what the policy scores. No model and no heavy library here."""

from __future__ import annotations

from dataclasses import dataclass
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

    def to(self, device: torch.device) -> PhaseTokens:
        return PhaseTokens(
            self.phase,
            self.context_ids.to(device),
            self.context_lengths.to(device),
            self.target_ids.to(device),
            self.target_mask.to(device),
        )
