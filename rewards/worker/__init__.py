"""One replica of one reward: micro-batches across groups, retries, and answers that are checked."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.worker.batches import RewardWorker as RewardWorker
    from rewards.worker.figures import RewardFigures as RewardFigures

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batches": ["RewardWorker"],
        "figures": ["RewardFigures"],
    },
)
