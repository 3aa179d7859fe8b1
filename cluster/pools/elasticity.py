"""Keeps elastic pools at the size that their load asks for, and takes workers off nodes that are to go.

    every_s: look at each pool ─► ScalingPolicy ─► resize
             ask Ray which nodes drain (a spot machine's notice, a scale-down) ─► drain their members

While Ray's head (its GCS) is gone, nobody says what is free, and pools keep their sizes.

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

from cluster.pools.pool import ActorPool
from cluster.pools.remote_errors import told
from cluster.pools.scaling import Load, ScalingPolicy
from configs.schema import ClusterConfig
from configs.worker_sections import PoolSize

HEAD_TIMEOUT_S = 10.0
"""Without an answer of Ray's head, after which the user is told of it."""


@dataclass(frozen=True, slots=True)
class NodesView:
    """What Ray's head knows of its nodes."""

    leaving: Collection[str]
    """Ids of those that it has been told will go."""
    free: Mapping[str, Any]
    """Resource -> amount that is free in the cluster as a whole."""


def look_at_nodes() -> NodesView:
    """Blocks for two round trips to Ray's head. Raises RayError when it is gone."""
    return NodesView(draining_nodes(), ray.available_resources())


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that Ray has been told will go. Blocks for a round trip."""
    return frozenset(_client(ray.get_runtime_context().gcs_address).get_draining_nodes())


@lru_cache(maxsize=1)
def _client(address: str) -> Any:
    # Ray has no public way to ask; its own Serve asks like this.
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    return GcsClient(address=address)


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
        look_at_nodes: Callable[[], NodesView] = look_at_nodes,
    ) -> None:
        self._config = config
        self._pools = tuple(pools)
        self._is_awaited = is_awaited
        self._note = note
        self._look_at_nodes = look_at_nodes
        self._is_head_missed = False
        self._last_trouble = ""
        scaling = config.scaling
        self._policies = {
            elastic.pool.kind: ScalingPolicy(
                elastic.size.min, elastic.size.max, scaling.grow_after_s, scaling.shrink_after_s
            )
            for elastic in self._pools
            if elastic.size.is_elastic
        }

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._config.scaling.every_s)
            try:
                await self._look_after_pools()
            except Exception as error:  # noqa: BLE001 - the pools are looked after for as long as the run lasts
                self._note_once(f"pools were not looked after: {told(error)}")

    async def _look_after_pools(self) -> None:
        if (nodes := await self._look()) is None:
            return
        for elastic in self._pools:
            await self._leave_nodes(elastic.pool, nodes.leaving)
            await self._fit(elastic, nodes.free)

    async def _look(self) -> NodesView | None:
        """None when Ray's head is gone, for a while or for good: the run goes on as long as it can."""
        # Ray's look-ups block, while the head is gone for as long as Ray waits for it: hence a thread.
        looking = asyncio.create_task(asyncio.to_thread(self._look_at_nodes))
        try:
            if not (await asyncio.wait({looking}, timeout=HEAD_TIMEOUT_S))[0]:
                self._miss_head(f"it has not answered for {HEAD_TIMEOUT_S:g} s")
            nodes = await looking
        except Exception as error:  # noqa: BLE001 - Ray's clients raise ConnectionError, RuntimeError and others, too
            self._miss_head(told(error))
            return None
        finally:
            looking.cancel()
        if self._is_head_missed:
            self._note("Ray's head answers again")
            self._is_head_missed = False
        return nodes

    def _miss_head(self, reason: str) -> None:
        if not self._is_head_missed:
            self._note(f"Ray's head is missed, and pools keep their sizes until it is back: {reason}")
        self._is_head_missed = True

    def _note_once(self, text: str) -> None:
        if text != self._last_trouble:
            self._note(text)
        self._last_trouble = text

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
