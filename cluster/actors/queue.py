"""The Ray actor around the trajectory queue."""

from __future__ import annotations

from cluster.actors.spawning import own_name
from cluster.actors.trajectory_queue import TrajectoryQueue
from rollout.records import ScoredGroup, TrajectoryBatch


class TrajectoryQueueActor:
    """The bounded trajectory queue as an actor."""

    def __init__(self, max_groups: int, groups_per_step: int, first_step: int) -> None:
        self._queue = TrajectoryQueue(max_groups, groups_per_step, first_step)

    def __repr__(self) -> str:
        return own_name()

    async def put(self, group: ScoredGroup) -> bool:
        return await self._queue.put(group)

    async def get_batch(self, step: int) -> tuple[int, TrajectoryBatch]:
        """Called with num_returns=2: the launcher looks at the first, the learner gets the second."""
        batch = await self._queue.get_batch(step)
        return len(batch.groups), batch

    async def num_queued(self) -> int:
        return self._queue.num_queued()
