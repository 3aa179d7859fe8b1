"""Training end to end: T2I-R1's way against bicot's."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.benchmarks.pipeline.tables import measure as measure

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": ["measure"],
    },
)
