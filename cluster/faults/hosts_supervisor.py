"""A run over several hosts under supervision, and what can be done to it: a host is cut off, or removed.

    head: GCS, launcher, the harness's Redis       a, b, c: learner, rollout, reward, on any of them
      └──────────── a bridge: cables that can be pulled ────────────┘

kind           what happens
node-cut-off   the cable of a host with workers is pulled; its processes go on and reach nobody
node-removed   as in a power cut: the cable, and every process at once
Either host comes back, empty, when the run has recovered without it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import psutil

from cluster.faults.host_ray import GCS_PORT, join, join_all, ray_environment, start_head
from cluster.faults.hosts import Host, several_hosts
from cluster.faults.supervisor import Supervisor
from cluster.faults.victims import find_workers

NODE_CUT_OFF, NODE_REMOVED = "node-cut-off", "node-removed"
NODE_KINDS: Final = (NODE_CUT_OFF, NODE_REMOVED)
HEAD: Final = "head"
WORKERS: Final = ("a", "b", "c")
CPUS: Final = 2
SHARED: Final = "/srv/shared"
"""Where the hosts see the harness's directory."""
_NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET of sched.h
T = TypeVar("T")


def overrides_on_hosts(address: str) -> list[str]:
    """Of the run: any two of the hosts hold all of its workers."""
    return [
        f"cluster.address={address}:{GCS_PORT}",
        f"run.dir={SHARED}",
        "rollout.engine=transformers",  # starts sooner, and draws slowly: hence small steps
        "algorithm.groups_per_step=2",
        "algorithm.group_size=4",
        "learner.micro_batch_size=8",
        "rollout.cpus_per_worker=1",
        "learner.cpus_per_rank=1.5",
    ]


@contextmanager
def cluster_of_hosts(directory: Path) -> Iterator[dict[str, Host]]:
    """A head without CPUs and three hosts with a raylet each; all see `directory` as SHARED. For root."""
    with several_hosts([HEAD, *WORKERS], ray_environment(), directory) as hosts:
        start_head(hosts[HEAD])
        join_all({hosts[name]: CPUS for name in WORKERS}, hosts[HEAD])
        yield hosts


@dataclass(slots=True)
class HostsSupervisor(Supervisor):
    """See `Supervisor`; the launcher is on `hosts`' head."""

    hosts: Mapping[str, Host] = field(default_factory=dict)
    _thread: ThreadPoolExecutor | None = field(default=None, init=False)

    def inside(self, call: Callable[[], T]) -> T:
        """In a thread whose sockets, and the processes that it starts, are in the head's network."""
        if self._thread is None:
            enter = f"/run/netns/{self.hosts[HEAD].netns}"
            self._thread = ThreadPoolExecutor(1, initializer=_enter_network, initargs=(enter,))
        return self._thread.submit(call).result()

    def find_processes(self) -> list[psutil.Process]:
        """The launcher and the run's actors: what else is on the hosts is Ray's, and stays."""
        actors = [victim.process for name in WORKERS for victim in find_workers(self.hosts[name].processes())]
        return [self.launcher, *actors]

    def start_process(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """On the head."""
        with self.output.open("ab") as file:
            return subprocess.Popen(
                self.hosts[HEAD].command(command, environment), stdout=file, stderr=file, start_new_session=True
            )

    def find_injuries(self, kinds: Sequence[str]) -> list[LostHost]:
        """Of hosts that have workers of the run."""
        used = [self.hosts[name] for name in WORKERS if find_workers(self.hosts[name].processes())]
        return [LostHost(kind, host, self.hosts[HEAD]) for host in used for kind in NODE_KINDS if kind in kinds]


@dataclass(slots=True)
class LostHost:
    """An injury: see `cluster.faults.injuries`."""

    kind: str
    host: Host
    head: Host
    victim: str = "host"
    lasts_s: float = 0.0
    _is_lost: bool = field(default=False, init=False)

    def inflict(self) -> None:
        self._is_lost = True
        self.host.cut_off()
        if self.kind == NODE_REMOVED:
            self.host.kill()

    def end(self) -> None:
        """It comes back as a new one."""
        if self._is_lost:
            self._is_lost = False
            self.host.kill()
            self.host.plug_in()
            join(self.host, self.head, CPUS)


def _enter_network(path: str) -> None:
    """Move this thread into a network namespace. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if libc.setns(descriptor, _NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    finally:
        os.close(descriptor)
