"""One group's way from prompt to scored pictures, with its failures.

    prompt ─► rollout pool ─► pictures ─► reward pools ─► ScoredGroup
                  ▲                                │
                  └─── rolled again, attempt + 1 ◄─┘  a worker died, a trajectory or a score failed, the node
                                                      went that held the pictures

Seeds do not depend on the attempt, so under the same weights a group rolled again is the same group.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import ray

from cluster.groups.scoring import RewardPools
from cluster.pools import ActorPool
from cluster.pools.remote_errors import CallFailedError, WorkerLostError
from configs.errors import DataError, RewardError, RolloutError
from rollout.records import GroupRequest, GroupRollout, ScoredGroup


class GroupGivenUpError(RolloutError):
    """A group failed `rollout.max_attempts` times; the message names the last reason."""


@dataclass(frozen=True, slots=True)
class RolledGroup:
    """A scored group, and where its pictures lie."""

    scored: ScoredGroup
    pictures: Any
    """Reference to uint8 [G, height, width, 3] in Ray's object store."""

    @property
    def has_spread(self) -> bool:
        """Whether any two of its rewards differ; a group without spread has advantages of 0."""
        return bool(self.scored.rewards.min() < self.scored.rewards.max())


@dataclass(frozen=True, slots=True)
class GroupRoller:
    """Rolls and scores groups on the two pools. `on_failure(request, reason)` hears of each failed attempt."""

    rollouts: ActorPool
    rewards: RewardPools
    max_attempts: int
    timeout_s: float
    on_failure: Callable[[GroupRequest, str], Awaitable[None]]

    async def roll(self, request: GroupRequest) -> RolledGroup:
        """Roll and score one group, again if need be; attempts count from `request.attempt`.

        Raises GroupGivenUpError after `max_attempts`.
        """
        reason = ""
        for attempt in range(request.attempt, request.attempt + self.max_attempts):
            try:
                return await self._roll_once(replace(request, attempt=attempt))
            except DataError as error:
                raise GroupGivenUpError(f"prompt {request.prompt.prompt_id} cannot be rolled: {error}") from error
            except (RolloutError, RewardError, WorkerLostError, CallFailedError) as error:
                reason = str(error).splitlines()[0]
                await self.on_failure(replace(request, attempt=attempt), reason)
        raise GroupGivenUpError(
            f"prompt {request.prompt.prompt_id} failed {self.max_attempts} times, at last because: {reason}"
        )

    async def _roll_once(self, request: GroupRequest) -> RolledGroup:
        pictures: Any = None

        def invoke(handle: Any) -> Any:
            nonlocal pictures
            rollout_reference, pictures = handle.roll_group.options(num_returns=2).remote(request)
            return rollout_reference

        try:
            rollout: GroupRollout = await self.rollouts.call(invoke, self.timeout_s)
        except asyncio.CancelledError:
            if pictures is not None:
                ray.cancel(pictures)  # nobody waits for the group any more; the worker is to leave it, too
            raise
        started = time.monotonic()
        combined = await self.rewards.score(pictures, request.prompt, request.group_size)
        scored = ScoredGroup(
            rollout=rollout,
            rewards=combined.rewards,
            reward_columns=combined.columns,
            explanations=combined.explanations,
            scored_s=time.monotonic() - started,
        )
        return RolledGroup(scored, pictures)
