"""What can be done to a run on one machine: kill a process, freeze one, make Redis late, fill disk and memory.

kind                what happens                                                       it ends
rollout, engine, …  SIGKILL to a process of that kind (`cluster.faults.victims`)       at once
freeze-rollout, …   SIGSTOP: the process keeps its memory and its sockets, and is mute  when the run has replaced it
redis-slow          Redis answers nobody for a while (CLIENT PAUSE)                    by itself, after SLOW_REDIS_S
memory              a process of an actor gets no more memory                          after STARVED_S
disk-full, shm-full no byte is left where the run directory is, or in /dev/shm          after FULL_S
reward-fails, …     a replica of a reward misbehaves (`cluster.faults.sabotage`)       when the run has replaced it
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import psutil
import redis

from cluster.faults.sabotage import ORDERS, SLOW, give_order, orders_of
from cluster.faults.storage import DISK_FULL, SHM_FULL, Full, shared_memory_of
from cluster.faults.supervisor import Supervisor
from cluster.faults.victims import KINDS as KILLS
from cluster.faults.victims import LAUNCHER, REDIS, find_victims

FREEZES: Final = tuple(f"freeze-{kind}" for kind in KILLS if kind not in (LAUNCHER, REDIS))
REDIS_SLOW, MEMORY = "redis-slow", "memory"
KINDS: Final = (*KILLS, *FREEZES, REDIS_SLOW, MEMORY, DISK_FULL, SHM_FULL, *ORDERS)
SLOW_REDIS_S: Final = 12.0
STARVED_S: Final = 15.0


class HasKind(Protocol):
    @property
    def kind(self) -> str: ...


class Injury(HasKind, Protocol):
    """Something that is done to a run: `inflict`, and `end` when `lasts_s` is over, and again after the recovery."""

    @property
    def victim(self) -> str:
        """The kind of process that has to be replaced for the run to have recovered, or "run"."""

    @property
    def lasts_s(self) -> float: ...

    def inflict(self) -> None: ...

    def end(self) -> None:
        """Take it back, as far as it can be; safe to call twice."""


@dataclass(frozen=True, slots=True)
class Kill:
    kind: str
    process: psutil.Process
    lasts_s: float = 0.0

    @property
    def victim(self) -> str:
        return self.kind

    def inflict(self) -> None:
        self.process.kill()

    def end(self) -> None:
        """Nothing brings it back."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Whoever replaces a frozen process kills it, too; where that is another process of the run, it stays."""

    victim: str
    process: psutil.Process
    lasts_s: float = 0.0

    @property
    def kind(self) -> str:
        return f"freeze-{self.victim}"

    def inflict(self) -> None:
        self.process.suspend()

    def end(self) -> None:
        """Wake it when it is still there, so that what follows is done to a process that can answer."""
        with suppress(psutil.NoSuchProcess):
            self.process.send_signal(signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class SlowRedis:
    url: str
    kind: str = REDIS_SLOW
    victim: str = "run"
    lasts_s: float = SLOW_REDIS_S

    def inflict(self) -> None:
        with redis.Redis.from_url(self.url, socket_timeout=5.0) as client:
            client.client_pause(int(self.lasts_s * 1000))

    def end(self) -> None:
        """It goes on by itself."""


@dataclass(frozen=True, slots=True)
class Starve:
    """A process gets no more memory than it has: each allocation that needs some fails. The machine is not touched."""

    process: psutil.Process
    kind: str = MEMORY
    victim: str = "run"
    lasts_s: float = STARVED_S

    def inflict(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._limit(self.process.memory_info().vms)

    def end(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._limit(psutil.RLIM_INFINITY)

    def _limit(self, num_bytes: int) -> None:
        _, hard = self.process.rlimit(psutil.RLIMIT_AS)
        self.process.rlimit(psutil.RLIMIT_AS, (num_bytes, hard))


@dataclass(frozen=True, slots=True)
class Misbehave:
    """A replica of a reward is told what to do wrong from now on, for as long as it lives."""

    kind: str
    process: psutil.Process
    folder: Path
    lasts_s: float = 0.0

    @property
    def victim(self) -> str:
        """One that is slow still scores, and is not replaced."""
        return "run" if self.kind == SLOW else "reward"

    def inflict(self) -> None:
        give_order(self.folder, self.process.pid, self.kind)

    def end(self) -> None:
        """It is for good."""


def find_injuries(supervisor: Supervisor, kinds: Sequence[str]) -> list[Injury]:
    """All that can be done to the run as it is now, of these kinds."""
    server = psutil.Process(supervisor.redis.process_id)
    injuries: list[Injury] = []
    for found in find_victims(supervisor.launcher, server):
        injuries += [Kill(found.kind, found.process), Freeze(found.kind, found.process)]
        if found.kind not in (LAUNCHER, REDIS):
            injuries.append(Starve(found.process))
        if found.kind == "reward":
            injuries += [Misbehave(order, found.process, orders_of(supervisor.directory)) for order in ORDERS]
    injuries += [
        SlowRedis(supervisor.redis.url),
        Full(DISK_FULL, supervisor.directory),
        Full(SHM_FULL, shared_memory_of(supervisor.launcher)),
    ]
    return [injury for injury in injuries if injury.kind in kinds]


Of = TypeVar("Of", bound=HasKind)


def choose(found: Iterable[Of], rng: random.Random, num_so_far: Mapping[str, int]) -> Of | None:
    """One of those kinds that were chosen least often, at random, so that no kind is left out; then one of that kind.

    num_so_far: how often each kind was chosen already. None when there is nothing to choose from.
    """
    by_kind: dict[str, list[Of]] = {}
    for each in found:
        by_kind.setdefault(each.kind, []).append(each)
    if not by_kind:
        return None
    fewest = min(num_so_far.get(kind, 0) for kind in by_kind)
    kind = rng.choice(sorted(kind for kind in by_kind if num_so_far.get(kind, 0) == fewest))
    return rng.choice(by_kind[kind])
