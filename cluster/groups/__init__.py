"""The way of one prompt: admitted, rolled out, scored, put into the trajectory queue."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.groups.admission import Admission as Admission
    from cluster.groups.queue_client import QueueClient as QueueClient
    from cluster.groups.roller import GroupRoller as GroupRoller
    from cluster.groups.scoring import RewardPools as RewardPools

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "admission": ["Admission"],
        "queue_client": ["QueueClient"],
        "roller": ["GroupRoller"],
        "scoring": ["RewardPools"],
    },
)
