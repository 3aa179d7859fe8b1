"""The exact rewards of the shapes world: they see each object and compare it with the prompt."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.shapes.neatness import NeatnessReward as NeatnessReward
    from rewards.shapes.reward import ShapesReward as ShapesReward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "neatness": ["NeatnessReward"],
        "reward": ["ShapesReward"],
    },
)
