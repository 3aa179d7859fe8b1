"""Rewards that find objects: what is there, how often, and where."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.objects.detections import Candidates as Candidates
    from rewards.objects.geneval_reward import GenEvalReward as GenEvalReward
    from rewards.objects.grounding_dino import GroundingDinoReward as GroundingDinoReward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "detections": ["Candidates"],
        "geneval_reward": ["GenEvalReward"],
        "grounding_dino": ["GroundingDinoReward"],
    },
)
