"""One group's way from prompt to scored pictures, with its failures.

    prompt ─► rollout pool ─► pictures ─► reward pools ─► ScoredGroup
                  ▲   │                     ▲      │
                  └───┘ rolled again:       └──────┘ scored again, after a while: fewer than two pictures have
                        a worker died, a           a score
                        trajectory failed, or
                        the node went that
                        held the pictures

Seeds do not depend on the attempt, so under the same weights a group rolled again is the same group.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import ray

from cluster.groups.busy_clock import BusyClock
from cluster.groups.scoring import RewardPools
from cluster.pools import ActorPool
from cluster.pools.remote_errors import CallFailedError, WorkerLostError
from configs.errors import DataError, NoRewardAppliesError, RewardError, RolloutError
from rollout.records import GroupRequest, GroupRollout, ScoredGroup

Result = TypeVar("Result")


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
        return bool(np.nanmin(self.scored.rewards) < np.nanmax(self.scored.rewards))


@dataclass(slots=True)
class RollCounts:
    """Since the roller was made."""

    num_rolled_again: int = 0
    """Groups drawn once more, because drawing them had failed."""
    num_left_out: int = 0
    """Pictures that could not be scored, of groups that went on without them."""
    drawing: BusyClock = field(default_factory=BusyClock)
    """A group is drawn, or waits for a worker that has room."""
    scoring: BusyClock = field(default_factory=BusyClock)


@dataclass(frozen=True, slots=True)
class GroupRoller:
    """Rolls and scores groups on the two pools. `on_failure(request, reason)` hears of each failed attempt."""

    rollouts: ActorPool
    rewards: RewardPools
    max_attempts: int
    timeout_s: float
    on_failure: Callable[[GroupRequest, str], Awaitable[None]]
    score_again_s: float = 1.0
    """Before the first further try to score a group; doubles with each."""
    counts: RollCounts = field(default_factory=RollCounts)

    async def roll(self, request: GroupRequest) -> RolledGroup:
        """Roll and score one group, again if need be; attempts count from `request.attempt`.

        Raises GroupGivenUpError after `max_attempts` rolls, or as many tries to score one of them.
        """

        async def attempt(this: GroupRequest) -> RolledGroup:
            with self.counts.drawing.inside():
                rollout, pictures = await self._roll_once(this)
            with self.counts.scoring.inside():
                return await self._score(rollout, pictures)

        return await self._tried(request, attempt)

    async def draw(self, request: GroupRequest) -> tuple[GroupRollout, Any]:
        """Roll one group, again if need be, and score it by no reward; its pictures are a reference.

        Raises GroupGivenUpError after `max_attempts` rolls.
        """
        return await self._tried(request, self._roll_once)

    async def _tried(self, request: GroupRequest, roll: Callable[[GroupRequest], Awaitable[Result]]) -> Result:
        reason = ""
        for attempt in range(request.attempt, request.attempt + self.max_attempts):
            this = replace(request, attempt=attempt)
            try:
                return await roll(this)
            except DataError as error:
                raise GroupGivenUpError(f"prompt {request.prompt.prompt_id} cannot be rolled: {error}") from error
            except (RolloutError, WorkerLostError, CallFailedError) as error:
                if isinstance(error, GroupGivenUpError):
                    raise
                reason = str(error).splitlines()[0]
                self.counts.num_rolled_again += 1
                await self.on_failure(this, reason)
        raise GroupGivenUpError(
            f"prompt {request.prompt.prompt_id} failed {self.max_attempts} times, at last because: {reason}"
        )

    async def _roll_once(self, request: GroupRequest) -> tuple[GroupRollout, Any]:
        pictures: Any = None

        def invoke(handle: Any) -> Any:
            nonlocal pictures
            rollout_reference, pictures = handle.roll_group.options(num_returns=2).remote(request)
            return rollout_reference

        try:
            return await self.rollouts.call(invoke, self.timeout_s), pictures
        except asyncio.CancelledError:
            if pictures is not None:
                ray.cancel(pictures)  # nobody waits for the group any more; the worker is to leave it, too
            raise

    async def _score(self, rollout: GroupRollout, pictures: Any) -> RolledGroup:
        """Score a group that is drawn. What fails is scored again after a while, and not drawn again: it would be the
        same pictures."""
        request, started = rollout.request, time.monotonic()
        plans = [trajectory.cot_text for trajectory in rollout.trajectories]
        reason = ""
        for number in range(self.max_attempts):
            try:
                combined = await self.rewards.score(
                    pictures, request.prompt, request.group_size, plans, is_evaluation=request.sequence < 0
                )
                break
            except NoRewardAppliesError as error:
                raise GroupGivenUpError(f"prompt {request.prompt.prompt_id} cannot be scored: {error}") from error
            except RewardError as error:
                reason = str(error).splitlines()[0]
                await self.on_failure(request, reason)
                if number + 1 < self.max_attempts:
                    await asyncio.sleep(self.score_again_s * 2**number)
        else:
            raise GroupGivenUpError(
                f"prompt {request.prompt.prompt_id} could not be scored {self.max_attempts} times, "
                f"at last because: {reason}"
            )
        self.counts.num_left_out += len(combined.errors)
        scored = ScoredGroup(
            rollout=rollout,
            rewards=combined.rewards,
            reward_columns=combined.columns,
            explanations=combined.explanations,
            scored_s=time.monotonic() - started,
        )
        return RolledGroup(scored, pictures)
