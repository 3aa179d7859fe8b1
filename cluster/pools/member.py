"""One worker of a pool, and what the pool is told of workers of its kind."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle

from cluster.pools.health import STARTED, Health, HealthState
from cluster.pools.heartbeats import PingPace
from configs.errors import WeightSyncError
from rollout.records import WeightVersion


class LateWeightsError(WeightSyncError):
    """A worker has not loaded a weight version in time. It may be at it, over a slow link."""


class LostWeightsError(WeightSyncError):
    """The newest version cannot be had any more. The learner is to publish another one."""


class LiveWeights(Protocol):
    """The weights that a worker must hold before it is given calls; `cluster.learning.weight_sync` has them."""

    @property
    def version(self) -> WeightVersion:
        """The newest version that was published."""

    async def catch_up(self, worker: ActorHandle) -> WeightVersion:
        """Load that version into one worker; returns the version it now holds. Raises LateWeightsError and
        LostWeightsError."""


class NoWeights:
    """`LiveWeights` of workers that hold no weights of the policy: there is one version, and all hold it."""

    @property
    def version(self) -> WeightVersion:
        return WeightVersion()

    async def catch_up(self, worker: ActorHandle) -> WeightVersion:
        return self.version


@dataclass(frozen=True, slots=True)
class PoolHooks:
    """What a pool does not know of its workers.

    A worker has a method `ping`, which returns the id of the node that it runs on.
    """

    spawn: Callable[[str], ActorHandle]
    """Makes the worker of that id, without waiting for it. Called in a thread: Ray tells its head of an actor with a
    name, and waits for as long as the head is away."""
    start: Callable[[ActorHandle], Awaitable[None]]
    """Loads its model."""
    on_change: Callable[[str, str], Awaitable[None]]
    """Hears (worker id, state); see `cluster.pools.health.HealthState`."""
    note: Callable[[str], None]
    """Tells the user."""
    weights: LiveWeights = field(default_factory=NoWeights)
    end: Callable[[ActorHandle], None] = ray.kill
    """Ends a worker at once, whatever it does."""
    spawning: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a worker is spawned. Pools that share it spawn their workers in the order in which these were asked
    for, so that the pools which are started first find their places first; and a head that is away holds up one
    thread."""
    give_up: Callable[[Any], None] | None = None
    """Has a worker leave the call whose answer is this reference, for workers that can."""
    loading: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    """Entered before a worker loads its model or newer weights, and left when it has; a wait for that counts for no
    time-out."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a pool waits, in seconds, and how often it asks."""

    start_s: float = 600.0
    """For a worker to start: from when it has its place in the cluster, and from its birth when no other one
    answers calls."""
    heartbeat_s: float = 5.0
    """That a worker may say nothing before it is asked, and for its answer before it counts as SUSPECT."""
    heartbeat_timeout_s: float = 60.0
    """For the answer to a heartbeat before the worker counts as DEAD."""
    pace: PingPace = field(default_factory=PingPace)
    """Of the heartbeats; pools with the same `Patience` share it."""
    retry_start_s: float = 30.0
    """After a failure to start, when others answer calls meanwhile."""


@dataclass(slots=True, eq=False)
class Member:
    """One worker of a pool."""

    worker_id: str
    handle: Any = None
    """None until it is spawned."""
    number: int = 0
    """How many workers the pool had started before it."""
    health: Health = field(default_factory=Health)
    num_calls: int = 0
    node_id: str = ""
    """Empty until its first answer."""
    heard_s: float = -math.inf
    """When it last answered anything; monotonic."""
    answered_s: float = -math.inf
    """When it last answered a call; monotonic."""

    def hear(self) -> None:
        """It has answered something."""
        self.heard_s = time.monotonic()

    def answer(self) -> None:
        """It has answered a call, if only with an error of its own."""
        self.hear()
        self.answered_s = self.heard_s

    def die(self, end: Callable[[ActorHandle], None]) -> None:
        """It is gone, or counts as gone. One that is being spawned is ended by its life, as soon as it is there."""
        self.health.die()
        if self.handle is not None:
            end(self.handle)

    @property
    def state(self) -> HealthState:
        return self.health.state


@dataclass(slots=True)
class Membership:
    """The workers of a pool, and how many of them are what; for `cluster.pools.pool`."""

    kind: str
    size: int
    _members: list[Member] = field(default_factory=list, init=False)
    """All that are not DEAD."""

    @property
    def started(self) -> tuple[Member, ...]:
        """The members that have loaded their model, whether they are given calls or not."""
        return tuple(member for member in self._members if member.state in (*STARTED, HealthState.DRAINING))

    @property
    def members(self) -> tuple[Member, ...]:
        """The members that are READY now."""
        return tuple(member for member in self._members if member.state is HealthState.READY)

    @property
    def everyone(self) -> tuple[Member, ...]:
        """The members that are not DEAD."""
        return tuple(self._members)

    @property
    def num_ready(self) -> int:
        return len(self.members)

    @property
    def num_joining(self) -> int:
        """Members that will be READY, but for accidents."""
        return sum(member.state in (HealthState.JOINING, HealthState.STALE) for member in self._members)

    @property
    def num_idle(self) -> int:
        """READY members without a call."""
        return sum(member.num_calls == 0 for member in self.members)

    def _take(self, max_calls: float, but: Collection[str] = ()) -> Member | None:
        """The least busy READY member with fewer calls than `max_calls`, but for these; it then has one more."""
        free = [member for member in self.members if member.num_calls < max_calls and member.worker_id not in but]
        member = min(free, key=lambda candidate: candidate.num_calls, default=None)
        if member is not None:
            member.num_calls += 1
        return member

    def describe(self) -> str:
        """`rollout: 1 of 2 READY; rollout-1 JOINING, without a process yet`."""
        others = [
            f"{m.worker_id} {m.state}{'' if m.node_id else ', without a process yet'}"
            for m in self._members
            if m.state is not HealthState.READY
        ]
        return "; ".join([f"{self.kind}: {self.num_ready} of {self.size} READY", *others])
