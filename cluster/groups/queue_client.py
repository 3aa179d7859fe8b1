"""The trajectory queue as the launcher sees it: it outlives the actor that holds it.

put(group) ─► actor ─► get_batch(step) ─► reference to the batch, for the learner's ranks
     └─► kept here until its batch is out; an actor that dies is replaced, and filled again from here
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import ray
from ray.exceptions import RayActorError

from cluster.actors import spawn
from cluster.actors.queue import TrajectoryQueueActor
from cluster.pools.cancellation import end_tasks
from cluster.pools.remote_errors import first_line
from configs.errors import RunError
from configs.schema import RunConfig
from rollout.records import ScoredGroup

MAX_REPLACEMENTS: Final = 10
"""A queue that dies more often than this does not die by chance."""


class QueueClient:
    """Puts and gets through one actor at a time. A group may be put again: the queue takes each once."""

    def __init__(self, config: RunConfig, run_id: str, first_step: int, note: Callable[[str], None]) -> None:
        self._config = config
        self._name = f"{run_id}-queue"
        self._next_step = first_step
        self._note = note
        self._num_replaced = 0
        self._kept: dict[int, ScoredGroup] = {}
        self._refills: set[asyncio.Task[None]] = set()
        self._actor = self._spawn()

    async def put(self, group: ScoredGroup) -> None:
        """Add a group, waiting for room."""
        self._kept[group.rollout.request.sequence] = group
        await self._put(group)

    async def get_batch(self, step: int) -> Any:
        """Reference to the batch of `step`, when all its groups are there."""
        self._next_step = step
        while True:
            actor = self._actor
            arrived, batch = actor.get_batch.options(num_returns=2).remote(step)
            try:
                await arrived
                break
            except RayActorError as error:
                self._replace(actor, error)
        self._next_step = step + 1
        for sequence in [kept for kept in self._kept if self._step_of(kept) <= step]:
            del self._kept[sequence]  # the batch is a value of its own now, and does not need the actor
        return batch

    async def close(self) -> None:
        """End the actor."""
        await end_tasks(self._refills.copy())
        ray.kill(self._actor)

    async def _put(self, group: ScoredGroup) -> None:
        while True:
            actor = self._actor
            try:
                await actor.put.remote(group)
                return
            except RayActorError as error:
                self._replace(actor, error)

    def _replace(self, actor: Any, error: RayActorError) -> None:
        """Put a new actor in the place of `actor`, unless another caller has."""
        if actor is not self._actor:
            return
        self._num_replaced += 1
        if self._num_replaced > MAX_REPLACEMENTS:
            raise RunError(f"the trajectory queue died {self._num_replaced} times; the last: {first_line(error)}")
        self._note(f"the trajectory queue died; a new one is filled with the {len(self._kept)} groups it held")
        self._actor = self._spawn()
        for group in self._kept.values():
            refill = asyncio.create_task(self._put(group), name=f"put again {group.rollout.request.sequence}")
            self._refills.add(refill)
            refill.add_done_callback(self._refills.discard)

    def _spawn(self) -> Any:
        algorithm = self._config.algorithm
        name = f"{self._name}-{self._num_replaced}" if self._num_replaced else self._name
        return spawn(
            TrajectoryQueueActor,
            self._config.max_queued_groups,
            algorithm.groups_per_step,
            self._next_step,
            name=name,
            num_cpus=0,
        )

    def _step_of(self, sequence: int) -> int:
        return sequence // self._config.algorithm.groups_per_step
