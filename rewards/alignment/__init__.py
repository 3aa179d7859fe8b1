"""Rewards that ask whether a picture shows what its prompt says."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.alignment.clip_scores import ClipScoreReward as ClipScoreReward
    from rewards.alignment.clip_scores import PickScoreReward as PickScoreReward
    from rewards.alignment.git_vqa import GitVqaReward as GitVqaReward
    from rewards.alignment.orm import OrmReward as OrmReward
    from rewards.alignment.vqa_score import VqaScoreReward as VqaScoreReward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "clip_scores": ["ClipScoreReward", "PickScoreReward"],
        "git_vqa": ["GitVqaReward"],
        "orm": ["OrmReward"],
        "vqa_score": ["VqaScoreReward"],
    },
)
