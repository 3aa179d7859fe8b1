"""Keeps elastic pools at the size that their load asks for, and takes workers off nodes that are to go.

    every_s: look at each pool ─► ScalingPolicy ─► resize
             ask Ray which nodes drain (a spot machine's notice, a scale-down) ─► drain their members

A member on a draining node finishes its calls while its replacement starts elsewhere. On a node that
goes without notice it is lost with its calls, as the pool finds out by them or by its heartbeats.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.pool import ActorPool
from cluster.remote_errors import first_line
from cluster.scaling import Load, ScalingPolicy
from configs.schema import ClusterConfig
from configs.worker_sections import PoolSize


@dataclass(frozen=True, slots=True)
class ElasticPool:
    """A pool, the sizes it may have, and what one member of it asks of a node."""

    pool: ActorPool
    size: PoolSize
    cpus: float
    gpus: float


class Elasticity:
    """Looks after some pools until it is cancelled. `is_awaited()`: whether the learner, or an evaluation,
    waits for groups now."""

    def __init__(
        self,
        config: ClusterConfig,
        pools: Collection[ElasticPool],
        is_awaited: Callable[[], bool],
        note: Callable[[str], None],
    ) -> None:
        self._config = config
        self._pools = tuple(pools)
        self._is_awaited = is_awaited
        self._note = note
        scaling = config.scaling
        self._policies = {
            elastic.pool.kind: ScalingPolicy(
                elastic.size.min, elastic.size.max, scaling.grow_after_s, scaling.shrink_after_s
            )
            for elastic in self._pools
            if elastic.size.is_elastic
        }

    async def run(self) -> None:
        is_blind = False
        while True:
            await asyncio.sleep(self._config.scaling.every_s)
            try:
                # Ray's look-ups block; in a thread they do not hold up the loop.
                leaving = await asyncio.to_thread(draining_nodes)
                free = await asyncio.to_thread(ray.available_resources)
            except RayError as error:  # its head is gone, for a while or for good: the run goes on as long as it can
                if not is_blind:
                    self._note(f"pools keep their sizes for now: Ray does not say what is free: {first_line(error)}")
                is_blind = True
                continue
            is_blind = False
            for elastic in self._pools:
                await self._leave_nodes(elastic.pool, leaving)
                await self._fit(elastic, free)

    async def _leave_nodes(self, pool: ActorPool, leaving: Collection[str]) -> None:
        for member in pool.members:
            if member.node_id in leaving:
                self._note(f"{member.worker_id} leaves: its node is told to go; starting another elsewhere")
                await pool.drain(member)

    async def _fit(self, elastic: ElasticPool, free: Mapping[str, Any]) -> None:
        pool = elastic.pool
        if pool.kind not in self._policies:
            return
        load = Load(
            time_s=time.monotonic(),
            size=pool.size,
            num_joining=pool.num_joining,
            num_idle=pool.num_idle,
            num_calls=pool.num_calls,
            is_awaited=self._is_awaited(),
            room=elastic.size.max if self._config.autoscaling else room_for(elastic, free),
        )
        size = self._policies[pool.kind].size_for(load)
        if size != pool.size:
            why = "the learner waits for it" if size > pool.size else "it has workers without work"
            self._note(f"{pool.kind}: from {pool.size} to {size} workers; {why}")
            await pool.resize(size)


def room_for(elastic: ElasticPool, free: Mapping[str, Any]) -> int:
    """How many more members fit into what is free; at most: it may lie in pieces on several nodes."""
    asked = (("CPU", elastic.cpus), ("GPU", elastic.gpus))
    places = [math.floor(free.get(resource, 0.0) / amount + 1e-4) for resource, amount in asked if amount > 0]
    return min(places, default=elastic.size.max)


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that Ray has been told will go. Blocks for a round trip."""
    return frozenset(_client(ray.get_runtime_context().gcs_address).get_draining_nodes())


@lru_cache(maxsize=1)
def _client(address: str) -> Any:
    # Ray has no public way to ask; its own Serve asks like this.
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    return GcsClient(address=address)
