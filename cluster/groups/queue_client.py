"""The trajectory queue as the launcher sees it: it outlives the actor that holds it.

put(group) ─► actor ─► get_batch(step) ─► reference to the batch, for the learner's ranks
     └─► kept here until its batch is out; an actor that dies is replaced, and filled again from here
                                  ▲
    supervise: ping every heartbeat_s ─► dead, or silent for heartbeat_timeout_s: it is ended, and so replaced

The actor lies on the launcher's own node, so that it does not go with a node that comes and goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors import spawn
from cluster.actors.queue import TrajectoryQueueActor
from cluster.pools.cancellation import end_tasks, made_in_thread
from cluster.pools.remote_errors import WorkerLostError, resolve, told
from configs.errors import RunError
from configs.schema import RunConfig
from rollout.records import ScoredGroup

MAX_REPLACEMENTS: Final = 10
"""In a row, without one batch in between: a queue that dies more often than this does not die by chance."""


def spawn_queue(config: RunConfig, name: str, first_step: int) -> Any:
    """A queue actor on this very node. Soft, Ray would take another one now and then, though there is room here."""
    return spawn(
        TrajectoryQueueActor,
        config.max_queued_groups,
        config.algorithm.groups_per_step,
        first_step,
        name=name,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
    )


class QueueClient:
    """Puts and gets through one actor at a time, once it is started. A group may be put again: the queue takes each
    once."""

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        first_step: int,
        note: Callable[[str], None],
        spawn: Callable[[RunConfig, str, int], Any] = spawn_queue,
        end: Callable[[Any], None] = ray.kill,
    ) -> None:
        """spawn: from config, name and first step to the actor; end: ends one at once, whatever it does."""
        self._config = config
        self._name = f"{run_id}-queue"
        self._next_step = first_step
        self._note = note
        self._spawn_actor = spawn
        self._end_actor = end
        self._num_spawned = 0
        self._num_replaced_in_a_row = 0
        self._kept: dict[int, ScoredGroup] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        """Gets the exception that ends the queue."""
        self._replacing = asyncio.Lock()
        self._actor: Any = None

    async def start(self) -> QueueClient:
        """Spawn the actor, and watch over it from now on; returns this client."""
        self._actor = await self._spawn()
        self._keep(self._supervise(), "supervise the queue")
        return self

    async def put(self, group: ScoredGroup) -> None:
        """Add a group, waiting for room. Raises RunError when the queue can no more be had."""
        self._kept[group.rollout.request.sequence] = group
        await self._unless_failed(self._put(group))

    async def get_batch(self, step: int) -> Any:
        """Reference to the batch of `step`, when all its groups are there. Raises RunError as `put` does."""
        self._next_step = step
        batch = await self._unless_failed(self._get_batch(step))
        self._num_replaced_in_a_row = 0
        self._next_step = step + 1
        for sequence in [kept for kept in self._kept if self._step_of(kept) <= step]:
            del self._kept[sequence]  # the batch is a value of its own now, and does not need the actor
        return batch

    async def close(self) -> None:
        """End the actor."""
        await end_tasks(self._tasks.copy())
        self._failure.cancel()
        if self._actor is not None:
            self._end_actor(self._actor)

    async def _put(self, group: ScoredGroup) -> None:
        while True:
            actor = self._actor
            try:
                await resolve(actor.put.remote(group))
                return
            except (RayError, WorkerLostError) as error:
                await self._replace(actor, told(error))

    async def _get_batch(self, step: int) -> Any:
        while True:
            actor = self._actor
            arrived, batch = actor.get_batch.options(num_returns=2).remote(step)
            try:
                await resolve(arrived)
                return batch
            except (RayError, WorkerLostError) as error:
                await self._replace(actor, told(error))

    async def _supervise(self) -> None:
        cluster = self._config.cluster
        while True:
            await asyncio.sleep(cluster.heartbeat_s)
            actor = self._actor
            answer = asyncio.ensure_future(resolve(actor.num_queued.remote()))
            try:
                if not (await asyncio.wait({answer}, timeout=cluster.heartbeat_timeout_s))[0]:
                    await self._replace(actor, f"was silent for {cluster.heartbeat_timeout_s:g} s")
                else:
                    answer.result()
            except (RayError, WorkerLostError) as error:
                await self._replace(actor, told(error))
            finally:
                answer.cancel()

    async def _unless_failed(self, work: Any) -> Any:
        """What `work` returns. Raises what a task of this queue has ended with, or did before."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._failure}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else self._failure.result()
        finally:
            await end_tasks({task})

    async def _replace(self, actor: Any, reason: str) -> None:
        """Put a new actor in the place of `actor`, unless another caller has. The calls that wait for it go on with
        the new one, as they fail when it is ended."""
        async with self._replacing:
            if actor is not self._actor:
                return
            self._num_replaced_in_a_row += 1
            if self._num_replaced_in_a_row > MAX_REPLACEMENTS:
                raise RunError(
                    f"the trajectory queue died {self._num_replaced_in_a_row} times before step {self._next_step} "
                    f"had its batch; the last: {reason}"
                )
            self._note(
                f"the trajectory queue died ({reason}); a new one is filled with the {len(self._kept)} groups it held"
            )
            self._actor = await self._spawn()
        self._end_actor(actor)
        for group in self._kept.values():
            self._keep(self._put(group), f"put again {group.rollout.request.sequence}")

    def _keep(self, work: Any, name: str) -> None:
        def look_at(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None and not self._failure.done():
                self._failure.set_exception(error)
                self._failure.exception()  # whoever waits raises it; nobody may be waiting now

        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(look_at)

    async def _spawn(self) -> Any:
        """In a thread: Ray waits for its head to hear of an actor with a name."""
        name = f"{self._name}-{self._num_spawned}" if self._num_spawned else self._name
        self._num_spawned += 1
        make = partial(self._spawn_actor, self._config, name, self._next_step)
        return await made_in_thread(make, self._end_actor)

    def _step_of(self, sequence: int) -> int:
        return sequence // self._config.algorithm.groups_per_step
