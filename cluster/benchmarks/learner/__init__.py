"""What the learner costs: memory of its log-probabilities, its speed, and what a step waits for a checkpoint."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.benchmarks.learner.tables import measure as measure

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": ["measure"],
    },
)
