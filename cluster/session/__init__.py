"""What comes before the first actor: Ray, the placement plan, a private Redis, the signals that end a run."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.session.placement import plan_placement as plan_placement
    from cluster.session.private_redis import PrivateRedis as PrivateRedis
    from cluster.session.ray_connection import ray_session as ray_session
    from cluster.session.stop_signals import StopSignals as StopSignals

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "placement": ["plan_placement"],
        "private_redis": ["PrivateRedis"],
        "ray_connection": ["ray_session"],
        "stop_signals": ["StopSignals"],
    },
)
