"""What becomes of the errors of ranks, and the probe of the run's folder, on ranks of this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from cluster.actors import folders
from cluster.actors.folders import ProbeAnswer
from cluster.benchmarks.local_actors import LocalActor
from cluster.learning import LearnerGroup
from cluster.learning.learner_group import LearnerLostError
from configs.errors import CheckpointError, ConfigError
from configs.schema import RunConfig

WAIT_S = 10.0


class Rank:
    """A rank whose steps raise, hang or end, and whose folder may be another."""

    def __init__(self, address: str = "10.77.0.11", disk: Path | None = None) -> None:
        self.address = address
        self.disk = disk
        self.runs = asyncio.Event()
        self.runs.set()
        self.has_written = False
        self.writing_error: Exception | None = None
        self.writes = asyncio.Event()
        self.writes.set()
        self.error: Exception | None = None

    async def pulse(self) -> None:
        await self.runs.wait()

    async def train_step(self, batch: Any, probes: Any) -> str:
        if self.error is not None:
            raise self.error
        await self.runs.wait()
        return "report"

    async def take_snapshot(self, step: int) -> None:
        raise self.error or AssertionError("it is to fail")

    async def write_snapshot(self, directory: str) -> str:
        await self.writes.wait()
        self.has_written = True
        if self.writing_error is not None:
            raise self.writing_error
        return "files"

    async def answer_probe(self, folder: str, question: str, answer: str) -> ProbeAnswer:
        return folders.answer_probe(str(self.disk or folder), question, answer, self.address)


def group_of(*ranks: Rank, notes: list[str] | None = None, **cluster: float) -> LearnerGroup:
    config = RunConfig.model_validate(
        {
            "model": {"path": "org/model", "dtype": "float32"},
            "data": {"train": "shapes:train"},
            "rewards": [{"name": "shapes"}],
            "cluster": {"heartbeat_s": 0.005, "heartbeat_timeout_s": 0.1, **cluster},
        }
    )
    group = LearnerGroup(config, "run", note=(notes if notes is not None else []).append)
    group._ranks += [LocalActor(rank) for rank in ranks]
    group._pulses.all_answered()  # as after `setup`
    return group


def task_error(cause: Exception) -> Exception:
    error: Exception = RayTaskError("f", "ray::f() (pid=1, ip=10.77.0.12)", cause).as_instanceof_cause()
    return error


async def test_a_learner_that_freezes_in_a_step_is_lost_long_before_the_steps_own_time_out() -> None:
    rank = Rank()
    group = group_of(rank)
    batch: Any = None
    assert await asyncio.wait_for(group.train_step(batch), WAIT_S) == "report"
    rank.runs.clear()
    with pytest.raises(LearnerLostError, match=r"the learner is lost during train_step: rank 0 was silent for 0\.1 s"):
        await asyncio.wait_for(group.train_step(batch), WAIT_S)
    assert not await asyncio.wait_for(group.is_alive(), WAIT_S)


async def test_work_of_others_on_the_ranks_is_watched_too() -> None:
    rank = Rank()
    group = group_of(rank)
    assert await group.watched(asyncio.sleep(0, "done"), "publishing") == "done"
    assert await group.is_alive()
    rank.runs.clear()
    with pytest.raises(LearnerLostError, match="the learner is lost during publishing: rank 0 was silent"):
        await asyncio.wait_for(group.watched(asyncio.Event().wait(), "publishing"), WAIT_S)


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (ActorDiedError(), LearnerLostError, "a learner rank died during take_snapshot"),
        (
            task_error(RuntimeError("peer closed")),
            LearnerLostError,
            r"failed during .*\(on node 10.77.0.12",
        ),
        (task_error(TimeoutError("of a library")), LearnerLostError, "failed during take_snapshot: TimeoutError"),
        (task_error(CheckpointError("cannot write: No space left")), CheckpointError, r"No space left \(on node 10.77"),
    ],
)
async def test_a_full_disk_is_no_dead_learner(error: Exception, raised: type[Exception], words: str) -> None:
    rank = Rank()
    rank.error = error
    with pytest.raises(raised, match=words) as caught:
        await asyncio.wait_for(group_of(rank).take_snapshot(1), WAIT_S)
    assert type(caught.value) is raised


async def test_a_snapshot_is_written_beside_a_step_and_its_failure_waits_for_the_last_rank() -> None:
    failing, slow = Rank(), Rank()
    failing.writing_error = task_error(CheckpointError("No space left"))
    slow.writes.clear()
    group = group_of(failing, slow)
    batch: Any = None
    writing = asyncio.create_task(group.write_snapshot("somewhere"))
    assert await asyncio.wait_for(group.train_step(batch), WAIT_S) == "report"
    assert failing.has_written
    assert not writing.done(), "what a rank still writes would lie in a folder that is taken away"
    slow.writes.set()
    with pytest.raises(CheckpointError, match="No space left"):
        await asyncio.wait_for(writing, WAIT_S)


async def test_a_disk_that_hangs_costs_the_checkpoint_and_not_the_learner() -> None:
    rank = Rank()
    rank.writes.clear()
    group = group_of(rank)
    group._config = group._config.model_copy(
        update={"run": group._config.run.model_copy(update={"step_timeout_s": 0.05})}
    )
    with pytest.raises(CheckpointError, match=r"did not finish write_snapshot within 0\.05 s"):
        await asyncio.wait_for(group.write_snapshot("somewhere"), WAIT_S)
    rank.runs.clear()
    with pytest.raises(LearnerLostError, match="rank 0 was silent"):
        await asyncio.wait_for(group_of(rank).write_snapshot("somewhere"), WAIT_S)


async def test_a_folder_that_all_ranks_share_is_left_as_it_was(tmp_path: Path) -> None:
    notes: list[str] = []
    await group_of(Rank("10.77.0.12"), Rank("10.77.0.11"), notes=notes).check_shares(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert notes == ["the 2 nodes of the learner's ranks: 10.77.0.11, 10.77.0.12"]


async def test_a_folder_that_is_not_there_on_another_node_is_refused_by_the_nodes_name(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "nothing" / "run"
    run.mkdir()
    with pytest.raises(ConfigError, match=r"run\.dir: .* \(node 10\.77\.0\.12: No such file.*set run\.dir to a"):
        await group_of(Rank(), Rank("10.77.0.12", other)).check_shares(run)
    assert list(run.iterdir()) == []


async def test_a_folder_of_the_same_name_on_another_disk_is_refused(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    with pytest.raises(ConfigError, match=r"node 10\.77\.0\.12: No such file or directory"):
        await group_of(Rank("10.77.0.12", other)).check_shares(run)


async def test_a_rank_whose_writing_is_not_seen_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = Rank("10.77.0.12")
    monkeypatch.setattr(folders, "answer_probe", lambda folder, question, answer, address: ProbeAnswer(address, None))
    with pytest.raises(ConfigError, match=r"node 10\.77\.0\.12: what it writes there is not seen here"):
        await group_of(rank).check_shares(tmp_path)
