"""Actors that each have a placement group of their own, or a bundle of one that they share with other actors.

A tensor-parallel engine needs all its GPUs on one node at once. As one bundle of one group they are reserved
together or not at all, the autoscaler sees the need as a whole, and no other actor takes a part of it while
the engine's processes start. The group goes when its actor goes.

Where engines take turns with the learner (`rollout.colocate`), one group has a bundle for each rank and the worker
beside it, which Ray gives the same GPU. It outlives them: a learner or a worker that is started again takes the place
of the one before it.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, Final

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.actors.spawning import spawn


class OwnPlacement:
    """Spawns actors into groups, and ends both together."""

    group: Final = None
    """No two actors share one."""

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


class SharedPlaces:
    """Spawns actors into the bundles of a group that others made; each has at most one of them, in good order."""

    def __init__(self) -> None:
        self.group: PlacementGroup | None = None
        """None until it is made."""
        self._bundles: dict[ActorHandle, int] = {}

    def spawn(self, actor_class: type, *args: Any, **options: Any) -> ActorHandle:
        """As `cluster.actors.spawn`, in the bundle with the fewest. It may have to wait there until the one that has
        just been ended has gone."""
        assert self.group is not None
        options.pop("label_selector", None)  # the bundle has it
        num_actors = Counter(self._bundles.values())
        index = min(range(self.group.bundle_count), key=lambda bundle: num_actors[bundle])
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)
        handle = spawn(actor_class, *args, scheduling_strategy=strategy, **options)
        self._bundles[handle] = index
        return handle

    def end(self, handle: ActorHandle) -> None:
        """End an actor; its place is free for another."""
        ray.kill(handle)
        self._bundles.pop(handle, None)

    def close(self) -> None:
        """Give the group back; as `OwnPlacement.end`, it returns at once."""
        if self.group is not None:
            threading.Thread(target=remove_placement_group, args=(self.group,), daemon=True).start()
            self.group = None
