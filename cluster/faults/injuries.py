"""What can be done to a run: kill a process, freeze one, make Redis late, fill the disk.

kind                what happens                                                       it ends
rollout, engine, …  SIGKILL to a process of that kind (`cluster.faults.victims`)       at once
freeze-rollout, …   SIGSTOP: the process keeps its memory and its sockets, and is mute  when the run has replaced it
redis-slow          Redis answers nobody for a while (CLIENT PAUSE)                    by itself, after SLOW_REDIS_S
disk-full           the file system of the run directory has no byte left              after DISK_FULL_S
reward-fails, …     a replica of a reward misbehaves (`cluster.faults.sabotage`)       when the run has replaced it
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import psutil
import redis

from cluster.faults.sabotage import ORDERS, SLOW, give_order, orders_of
from cluster.faults.supervisor import Supervisor
from cluster.faults.victims import KINDS as KILLS
from cluster.faults.victims import find_victims

FREEZES: Final = tuple(f"freeze-{kind}" for kind in KILLS if kind not in ("launcher", "redis"))
REDIS_SLOW, DISK_FULL = "redis-slow", "disk-full"
KINDS: Final = (*KILLS, *FREEZES, REDIS_SLOW, DISK_FULL, *ORDERS)
SLOW_REDIS_S: Final = 12.0
DISK_FULL_S: Final = 10.0
SMALL_DISK_MIB: Final = 512
FILLER = "filler"


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
class FullDisk:
    directory: Path
    kind: str = DISK_FULL
    victim: str = "run"
    lasts_s: float = DISK_FULL_S

    def inflict(self) -> None:
        """Write until the file system takes no more byte."""
        with (self.directory / FILLER).open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def end(self) -> None:
        (self.directory / FILLER).unlink(missing_ok=True)


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
        if found.kind == "reward":
            injuries += [Misbehave(order, found.process, orders_of(supervisor.directory)) for order in ORDERS]
    injuries += [SlowRedis(supervisor.redis.url), FullDisk(supervisor.directory)]
    return [injury for injury in injuries if injury.kind in kinds]


Of = TypeVar("Of", bound=HasKind)


def choose(found: Iterable[Of], rng: random.Random) -> Of | None:
    """A kind at random, so that many processes of one kind do not shield the others; then one of that kind.

    None when there is nothing to choose from.
    """
    by_kind: dict[str, list[Of]] = {}
    for each in found:
        by_kind.setdefault(each.kind, []).append(each)
    return rng.choice(by_kind[rng.choice(sorted(by_kind))]) if by_kind else None


def why_no_small_disk() -> str | None:
    """Why `disk-full` cannot be tried on this machine, or None."""
    if os.name != "posix" or os.geteuid() != 0:
        return "only root may mount a small file system for the run directory"
    return None


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """`directory` on a file system of its own, of SMALL_DISK_MIB MiB in memory, so that filling it harms nobody."""
    options = f"size={SMALL_DISK_MIB}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "bicot-chaos", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
