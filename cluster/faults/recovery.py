"""One injury, and when the run has recovered from it.

injured                                  recovered when
rollout worker or engine, reward worker  another worker of its pool, that was not there before, is READY: also where it
                                         lives and fails, which has to be found out first
a host                                   four more optimizer steps are made: some were under way when it went
Redis                                    the run was resumed, and has made two more steps: until its patience is over it
                                         goes on as if nothing had happened
anything else                            the optimizer step after the one it died in is made
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cluster.faults.supervisor import Supervisor
from cluster.faults.victims import REDIS
from cluster.state import Registry
from cluster.state.registry import RunSnapshot
from cluster.state.run_directory import key_of
from configs.errors import RegistryError

_POOL_OF: Final[Mapping[str, str]] = {"rollout": "rollout", "engine": "rollout", "reward": "reward"}
"""Kind of victim -> how the registry's ids of its pool's workers begin."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One injury, and what came of it."""

    kind: str
    step: int
    """Optimizer steps made when it happened."""
    recovery_s: float
    steps_redone: int
    """Steps that were made, but after the newest whole checkpoint when the run was resumed from it."""
    groups_rolled_again: int
    resumed: bool
    """Whether the launcher had to be started again."""


class Recovery:
    """Looks at the run before one injury and after it."""

    def __init__(self, supervisor: Supervisor, kind: str, victim: str) -> None:
        """To be made just before the injury. victim: the kind of process that is injured, or "run"."""
        self._supervisor = supervisor
        self._kind = kind
        self._victim = victim
        self._step = self._highest_step = supervisor.num_steps
        self._steps_redone = 0
        self._until = self._step + (4 if victim == "host" else 2)
        self._num_rolled_again = self._rolled_again()
        self._num_resumes = supervisor.num_resumes
        self._known = self._ready_workers()
        self._waits_for_resume = victim == REDIS

    def from_here(self) -> None:
        """The injury is taken back: steps that were made while it lasted are no sign of a recovery."""
        self._until = self._supervisor.num_steps + 2

    def is_over(self) -> bool:
        """Whether the run has recovered. A run that was resumed has when it has made a step more than before."""
        step = self._supervisor.num_steps
        self._highest_step = max(self._highest_step, step)
        self._steps_redone = max(self._steps_redone, self._highest_step - step)
        if self._waits_for_resume:
            if not self._was_resumed:
                return False
            self._waits_for_resume = False
            self.from_here()
        if self._victim in _POOL_OF and not self._was_resumed:
            return bool(self._ready_workers() - self._known)
        # A step may have been as good as made when the process died; the one after it was not.
        return step >= self._until

    def fault(self, recovery_s: float) -> Fault:
        """The record of it, once `is_over`."""
        return Fault(
            kind=self._kind,
            step=self._step,
            recovery_s=recovery_s,
            steps_redone=self._steps_redone,
            groups_rolled_again=max(0, self._rolled_again() - self._num_rolled_again),
            resumed=self._was_resumed,
        )

    @property
    def _was_resumed(self) -> bool:
        return self._supervisor.num_resumes > self._num_resumes

    def _rolled_again(self) -> int:
        rows = self._supervisor.rows()
        return int(rows[-1]["groups_rolled_again"] or 0) if rows else 0

    def _ready_workers(self) -> set[str]:
        if self._victim not in _POOL_OF:
            return set()
        try:
            workers = read_registry(self._supervisor).workers
        except RegistryError:
            return set()  # it is being started again
        beginning = _POOL_OF[self._victim]
        return {name for name, worker in workers.items() if worker.state == "READY" and name.startswith(beginning)}


def read_registry(supervisor: Supervisor) -> RunSnapshot:
    """The registry as it stands. Raises RegistryError while its server is away."""

    async def read() -> RunSnapshot:
        async with Registry(supervisor.redis.url, key_of(supervisor.run_directory)) as registry:
            return await registry.snapshot()

    return supervisor.inside(lambda: asyncio.run(read()))
