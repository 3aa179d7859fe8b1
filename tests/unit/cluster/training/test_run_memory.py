"""The metrics of a run's memory, of workers that answer, that are late, that die, and that come and go."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from cluster.actors.usage import Usage
from cluster.training.run_memory import MAX_ASKED, MemoryWatch


class Worker:
    """An actor whose answers the test gives."""

    def __init__(self) -> None:
        self.calls: list[Future[Usage]] = []
        self.usage = SimpleNamespace(remote=self._remote)

    def _remote(self) -> Any:
        self.calls.append(Future())
        return SimpleNamespace(future=lambda: self.calls[-1])

    def answer(self, gb: float, gpu_gb: float = 0.0) -> None:
        self.calls[-1].set_result(Usage(None, int(gb * 1e9), int(gpu_gb * 1e9), 0, 0))


class Rank(Worker):
    """A learner's rank, which is asked in the thread that answers while it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.pulse = SimpleNamespace()
        self.groups: list[str] = []
        self.usage = SimpleNamespace(options=self._options)

    def _options(self, concurrency_group: str) -> Any:
        self.groups.append(concurrency_group)
        return SimpleNamespace(remote=self._remote)


def pool(*workers: Worker) -> Any:
    members = tuple(SimpleNamespace(worker_id=str(number), handle=worker) for number, worker in enumerate(workers))
    return SimpleNamespace(started=members)


def watch_of(rollouts: Any, rewards: Any = (), ranks: tuple[Rank, ...] = ()) -> MemoryWatch:
    pools: Any = SimpleNamespace(elastic_pools=[SimpleNamespace(pool=one) for one in rewards])
    learner: Any = SimpleNamespace(ranks=ranks)
    return MemoryWatch(rollouts, pools, learner)


def others(watch: MemoryWatch) -> dict[str, float]:
    metrics = watch.take()
    assert metrics.pop("memory/launcher_gb") > 0
    return metrics


def test_of_each_kind_the_largest_counts_and_a_gpu_only_where_there_is_one() -> None:
    workers, replica, ranks = (Worker(), Worker()), Worker(), (Rank(), Rank())
    watch = watch_of(pool(*workers), [pool(replica)], ranks)
    watch.ask()
    for number, worker in enumerate([*workers, replica, *ranks]):
        worker.answer(number + 1)
    assert others(watch) == {"memory/rollout_gb": 2, "memory/rewards_gb": 3, "memory/learner_gb": 5}
    assert [rank.groups for rank in ranks] == [["pulse"], ["pulse"]]
    watch.ask()
    ranks[0].answer(4, gpu_gb=60)
    assert others(watch) == {"memory/learner_gb": 4, "memory/learner_gpu_gb": 60}


def test_a_late_answer_is_not_waited_for_and_its_worker_is_not_asked_again_before_it_comes() -> None:
    slow, quick = Worker(), Worker()
    watch = watch_of(pool(slow, quick))
    watch.ask()
    quick.answer(1)
    assert others(watch) == {"memory/rollout_gb": 1}
    watch.ask()
    assert (len(slow.calls), len(quick.calls)) == (1, 2)
    assert others(watch) == {}, "what it held a step ago is no news"
    slow.answer(3)
    assert others(watch) == {"memory/rollout_gb": 3}
    watch.ask()
    assert len(slow.calls) == 2


def test_a_worker_that_dies_or_leaves_is_absent_and_one_in_its_place_is_asked() -> None:
    dying, leaving, newcomer = Worker(), Worker(), Worker()
    rollouts = pool(dying, leaving)
    watch = watch_of(rollouts)
    watch.ask()
    dying.calls[-1].set_exception(RuntimeError("the actor died"))
    leaving.answer(8)
    assert others(watch) == {"memory/rollout_gb": 8}
    rollouts.started = (SimpleNamespace(worker_id="2", handle=newcomer),)
    watch.ask()
    newcomer.answer(1)
    assert others(watch) == {"memory/rollout_gb": 1}


def test_of_a_large_pool_some_are_asked_at_a_step_and_all_in_turn() -> None:
    workers = [Worker() for _ in range(2 * MAX_ASKED + 1)]
    watch = watch_of(pool(*workers))
    for step in range(1, 4):
        watch.ask()
        asked = [worker for worker in workers if worker.calls and not worker.calls[-1].done()]
        assert len(asked) == MAX_ASKED
        for worker in asked:
            worker.answer(9 if worker is workers[0] else step)
        assert others(watch) == {"memory/rollout_gb": 9}, "the others hold what they held"
    assert all(worker.calls for worker in workers)
