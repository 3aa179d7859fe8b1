"""Guards against pictures that nobody should be shown."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.safety.nsfw import NsfwReward as NsfwReward
    from rewards.safety.open_nsfw import OpenNsfwReward as OpenNsfwReward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "nsfw": ["NsfwReward"],
        "open_nsfw": ["OpenNsfwReward"],
    },
)
