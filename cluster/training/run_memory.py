"""How much memory a run's processes hold, step by step, so that one that grows shows: the metrics `memory/…`.

    ask: Usage of workers and ranks, each in a process of its own, on any host ┄┄► answers, as they come
    take: what has come by now, and this process's own

Nobody waits for an answer. Who has not answered when the metrics are written is not in them, and is asked nothing more
until it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Final

from cluster.actors.usage import Usage, ask_usage, held_by_this_process
from cluster.groups.scoring import RewardPools
from cluster.learning import LearnerGroup
from cluster.pools import ActorPool

MAX_ASKED: Final = 16
"""Of each kind at a step, those that were asked longest ago: a call costs the launcher most of a millisecond. Of more
workers, those that are not asked are taken to hold what they last held."""
_GB: Final = 1e9
Worker = tuple[str, str]
"""Its kind, and its id among them."""


class MemoryWatch:
    """Of the workers that a run has at each step: pools may grow and shrink, and a worker may take another's place."""

    def __init__(self, rollouts: ActorPool, rewards: RewardPools, learner: LearnerGroup) -> None:
        self._rollouts = rollouts
        self._rewards = rewards
        self._learner = learner
        self._num_asks = 0
        self._asked: dict[Worker, int] = {}
        """When each was asked last: in which of the asks."""
        self._answers: dict[Worker, Future[Usage]] = {}
        self._known: dict[Worker, Usage] = {}

    def ask(self) -> None:
        """Ask the workers that there are."""
        self._num_asks += 1
        workers = self._workers()
        for gone in self._asked.keys() - workers.keys():
            for kept in (self._asked, self._answers, self._known):
                kept.pop(gone, None)
        for kind in ("rollout", "rewards", "learner"):
            free = [worker for worker in workers if worker[0] == kind and worker not in self._answers]
            for worker in sorted(free, key=lambda each: self._asked.get(each, 0))[:MAX_ASKED]:
                if (reference := ask_usage(workers[worker])) is not None:
                    self._known.pop(worker, None)
                    self._asked[worker], self._answers[worker] = self._num_asks, reference.future()

    def take(self) -> dict[str, float]:
        """Metrics, as `cluster.reports.metrics` documents them."""
        for worker, answer in list(self._answers.items()):
            if answer.done():
                del self._answers[worker]
                if answer.exception() is None:  # of one that has died there is nothing to tell, and its pool tells it
                    self._known[worker] = answer.result()
        metrics = {"memory/launcher_gb": held_by_this_process() / _GB}
        for kind in ("rollout", "rewards", "learner"):
            usages = [usage for worker, usage in self._known.items() if worker[0] == kind]
            if usages:
                metrics[f"memory/{kind}_gb"] = max(usage.held_bytes for usage in usages) / _GB
            if kind == "learner" and (reserved := max((usage.held_gpu_bytes for usage in usages), default=0)):
                metrics["memory/learner_gpu_gb"] = reserved / _GB
        return metrics

    def _workers(self) -> Mapping[Worker, Any]:
        """Handles of all that have started."""
        pools = {"rollout": [self._rollouts], "rewards": [each.pool for each in self._rewards.elastic_pools]}
        workers = {
            (kind, member.worker_id): member.handle
            for kind, those in pools.items()
            for pool in those
            for member in pool.started
        }
        return workers | {("learner", str(rank)): handle for rank, handle in enumerate(self._learner.ranks)}
