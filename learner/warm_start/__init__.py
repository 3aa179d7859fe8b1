"""Supervised training on prompt, plan and picture, before reinforcement learning; and the tiny Janus."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from learner.warm_start.cache import warm_start_folder as warm_start_folder
    from learner.warm_start.training import ensure_warm_start as ensure_warm_start
    from learner.warm_start.training import warm_start as warm_start

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cache": ["warm_start_folder"],
        "training": ["ensure_warm_start", "warm_start"],
    },
)
