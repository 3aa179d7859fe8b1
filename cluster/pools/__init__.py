"""Keeps n members of one kind alive and gives each its turn: health, heartbeats, replacement, elasticity."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.pools.elasticity import Elasticity as Elasticity
    from cluster.pools.member import Patience as Patience
    from cluster.pools.member import PoolHooks as PoolHooks
    from cluster.pools.pool import ActorPool as ActorPool

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "elasticity": ["Elasticity"],
        "member": ["Patience", "PoolHooks"],
        "pool": ["ActorPool"],
    },
)
