"""What each reward costs by itself, with a small model of its class."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.benchmarks.reward_models.tables import measure as measure

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": ["measure"],
    },
)
