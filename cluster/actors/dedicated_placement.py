"""Actors that each have a placement group of their own.

A tensor-parallel engine needs all its GPUs on one node at once. As one bundle of one group they are reserved
together or not at all, the autoscaler sees the need as a whole, and no other actor takes a part of it while
the engine's processes start. The group goes when its actor goes.
"""

from __future__ import annotations

import threading
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.actors.spawning import spawn


class OwnPlacement:
    """Spawns actors into groups, and ends both together."""

    def __init__(self) -> None:
        self._groups: dict[ActorHandle, PlacementGroup] = {}

    def spawn(self, actor_class: type, *args: Any, num_cpus: float, num_gpus: float, **options: Any) -> ActorHandle:
        """As `cluster.actors.spawn`; neither waits for the place nor for the actor."""
        asked = {"CPU": num_cpus, "GPU": num_gpus}
        labels = options.pop("label_selector", None)
        group = placement_group(
            [{name: amount for name, amount in asked.items() if amount > 0}],
            strategy="STRICT_PACK",
            bundle_label_selector=[labels] if labels else None,
        )
        handle = spawn(
            actor_class,
            *args,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
            **options,
        )
        self._groups[handle] = group
        return handle

    def end(self, handle: ActorHandle) -> None:
        """End an actor, whether it has a group or not, and give its place back.

        Returns at once: Ray waits for its head to hear of a group that goes, hence the thread.
        """
        ray.kill(handle)
        if (group := self._groups.pop(handle, None)) is not None:
            threading.Thread(target=remove_placement_group, args=(group,), daemon=True).start()
