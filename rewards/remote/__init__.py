"""Rewards that are computed by a server of one's own, in whatever language and with whatever packages."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.remote.http_reward import HttpReward as HttpReward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "http_reward": ["HttpReward"],
    },
)
