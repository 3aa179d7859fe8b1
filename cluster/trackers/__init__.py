"""Trackers that people use already: TensorBoard, Weights & Biases, trackio, MLflow. Each has a thread of its own."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.trackers.protocol import TrackedPicture as TrackedPicture
    from cluster.trackers.protocol import TrackedRun as TrackedRun
    from cluster.trackers.threads import Trackers as Trackers

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"protocol": ["TrackedPicture", "TrackedRun"], "threads": ["Trackers"]},
)
