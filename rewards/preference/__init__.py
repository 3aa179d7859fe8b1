"""Rewards that predict which picture people prefer."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.preference.aesthetic import AestheticReward as AestheticReward
    from rewards.preference.hps import HPSReward as HPSReward
    from rewards.preference.image_reward import ImageReward as ImageReward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "aesthetic": ["AestheticReward"],
        "hps": ["HPSReward"],
        "image_reward": ["ImageReward"],
    },
)
