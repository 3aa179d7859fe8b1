"""Batches in, weights out: the learner's ranks, and the transports that bring its weights to the engines."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.learning.broadcast_sync import BroadcastSync as BroadcastSync
    from cluster.learning.broadcast_sync import make_weight_sync as make_weight_sync
    from cluster.learning.learner_group import LearnerGroup as LearnerGroup
    from cluster.learning.turns import NoTurns as NoTurns
    from cluster.learning.turns import Turns as Turns
    from cluster.learning.turns import make_turns as make_turns
    from cluster.learning.weight_sync import ObjectStoreSync as ObjectStoreSync
    from cluster.learning.weight_sync import WeightSync as WeightSync

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "learner_group": ["LearnerGroup"],
        "broadcast_sync": ["BroadcastSync", "make_weight_sync"],
        "turns": ["NoTurns", "Turns", "make_turns"],
        "weight_sync": ["ObjectStoreSync", "WeightSync"],
    },
)
