"""The nodes of the Ray cluster that a run may count on."""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import state

from cluster.session.placement import PlacementPlan, check_fits, check_labels
from configs.errors import PlacementError
from configs.schema import RunConfig


def usable_nodes() -> list[dict[str, Any]]:
    """Each node that is there and stays, as Ray tells of it: not one that Ray has been told will go.

    Blocks for two round trips to Ray's head.
    """
    leaving = state.get_draining_nodes()  # Ray has no public way to ask
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def check_cluster(plan: PlacementPlan) -> None:
    """Raises PlacementError when the cluster can never hold the plan."""
    nodes = usable_nodes()
    resources = [node["Resources"] for node in nodes]
    together = {name: sum(node.get(name, 0.0) for node in resources) for name in ("CPU", "GPU")}
    check_fits(plan, together, resources)
    check_labels(plan, [node["Labels"] for node in nodes])


def check_registry_is_reached(config: RunConfig, num_nodes: int) -> None:
    """Raises PlacementError when replicas on other nodes cannot reach the Redis that is to keep their scores."""
    cached = [reward.name for reward in config.rewards if reward.cache]
    if cached and config.registry.redis_url is None and num_nodes > 1:
        raise PlacementError(
            f"rewards.{cached[0]}.cache: the cluster has {num_nodes} nodes, and the run's own Redis is reached from "
            "the launcher's alone; set registry.redis_url to a Redis that all nodes reach, or cache to false"
        )
