"""Where the learner's ranks go: on one node where one can hold them all, since ZeRO-3 gathers every layer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.actors import LearnerActor, spawn
from cluster.actors.learner import CONCURRENCY_GROUPS
from cluster.pools.cancellation import made_in_thread
from cluster.session.nodes import usable_nodes
from configs.errors import PlacementError
from configs.schema import RunConfig

TOGETHER_SHARE: Final = 0.5
"""Of run.start_timeout_s, for a place on one node, before the ranks are spread."""
_RESOLUTION: Final = 1e-4


def bundle_of(config: RunConfig) -> dict[str, float]:
    """What one rank asks of a node; with `rollout.colocate`, it and the rollout worker that shares its place."""
    learner, rollout = config.learner, config.rollout
    asked = {"CPU": learner.cpus_per_rank, "GPU": learner.gpus_per_rank}
    if rollout.colocate:
        asked = {"CPU": asked["CPU"] + rollout.cpus_per_worker, "GPU": asked["GPU"] + rollout.gpus_per_worker}
    return {resource: amount for resource, amount in asked.items() if amount > 0} or {"CPU": 0.001}


def fits_one_node(bundle: Mapping[str, float], num: int, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether any of the nodes (resource -> amount, of each in whole) holds `num` bundles."""
    return any(
        all(node.get(resource, 0.0) + _RESOLUTION >= num * amount for resource, amount in bundle.items())
        for node in nodes
    )


async def place_ranks(config: RunConfig, note: Callable[[str], None]) -> PlacementGroup:
    """A group with a bundle for each rank, in their order. Raises PlacementError when there is no place in time.

    On one node, strictly, where one is large enough; where it is not, or others have taken its place, on several,
    and the user is told.
    """
    bundle, learner, timeout_s = bundle_of(config), config.learner, config.run.start_timeout_s
    num_ranks = learner.num_ranks
    if num_ranks > 1 and fits_one_node(bundle, num_ranks, await asyncio.to_thread(_nodes, learner.node_labels)):
        try:
            return await _placed(config, "STRICT_PACK", TOGETHER_SHARE * timeout_s)
        except TimeoutError:
            note(
                f"the {num_ranks} learner ranks find no place together on one node within "
                f"{TOGETHER_SHARE * timeout_s:g} s, and are spread over several: each step then waits for their network"
            )
    try:
        return await _placed(config, "PACK", timeout_s)
    except TimeoutError as error:
        raise PlacementError(
            f"{num_ranks} learner ranks with {bundle} each were not placed within {timeout_s:g} s; free resources, "
            "add nodes, or lower learner.num_ranks"
        ) from error


def spawn_rank(config: RunConfig, name: str, rank: int, placement: PlacementGroup) -> ActorHandle:
    """The actor of that rank, in its bundle of the group."""
    learner = config.learner
    return spawn(
        LearnerActor,
        config,
        rank,
        name=name,
        num_cpus=learner.cpus_per_rank,
        num_gpus=learner.gpus_per_rank,
        threads=learner.threads_per_rank,
        runtime_env={"env_vars": dict(learner.env_vars)},
        concurrency_groups=CONCURRENCY_GROUPS,
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement, rank),
    )


async def _placed(config: RunConfig, strategy: str, timeout_s: float) -> PlacementGroup:
    num, labels = config.learner.num_ranks, config.learner.node_labels
    bundles, selectors = [bundle_of(config)] * num, [labels] * num if labels else None
    make = partial(placement_group, bundles, strategy=strategy, bundle_label_selector=selectors)
    async with asyncio.timeout(timeout_s):
        group = await made_in_thread(make, remove_placement_group)
        try:
            await group.ready()
        except BaseException:
            await asyncio.to_thread(remove_placement_group, group)
            raise
    return group


def _nodes(labels: Mapping[str, str]) -> list[dict[str, float]]:
    """Resources of the nodes with these labels."""
    return [node["Resources"] for node in usable_nodes() if labels.items() <= node["Labels"].items()]
