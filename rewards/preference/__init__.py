"""Rewards that predict which picture people prefer."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.preference.aesthetic import AestheticReward as AestheticReward
    from rewards.preference.aesthetic_v2_5 import AestheticV25Reward as AestheticV25Reward
    from rewards.preference.hps import HPSReward as HPSReward
    from rewards.preference.hpsv3 import Hpsv3Reward as Hpsv3Reward
    from rewards.preference.image_reward import ImageReward as ImageReward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "aesthetic": ["AestheticReward"],
        "aesthetic_v2_5": ["AestheticV25Reward"],
        "hps": ["HPSReward"],
        "hpsv3": ["Hpsv3Reward"],
        "image_reward": ["ImageReward"],
    },
)
