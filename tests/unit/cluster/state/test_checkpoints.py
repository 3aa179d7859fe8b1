from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from cluster.actors.folders import WrittenFiles, digest_file
from cluster.learning import LearnerGroup
from cluster.state import BackgroundCheckpoints, Checkpoints, RunState
from cluster.state.run_state import digest_of
from configs.errors import CheckpointError, DataError, LearnerError
from configs.schema import CheckpointConfig
from rollout.records import Prompt

WAIT_S = 10.0


class Writer:
    """Writes like the learner's ranks; `fault` is raised after the state and before the model, `elsewhere` writes to
    the disk of another node."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.elsewhere: Path | None = None
        self.num_written = 0
        self.disk_answers = asyncio.Event()
        self.disk_answers.set()
        self.step = 0

    async def take_snapshot(self, step: int) -> None:
        self.step = step

    async def write_snapshot(self, directory: str) -> list[WrittenFiles]:
        self.num_written += 1
        files = [
            self._write(directory, {"state/learner.json": str(self.step)}),
            self._write(directory, {"state/rank": "weights"}),
        ]
        await self.disk_answers.wait()
        if self.fault is not None:
            raise self.fault
        return [*files, self._write(directory, {"model/config.json": "{}"})]

    def _write(self, directory: str, files: dict[str, str]) -> WrittenFiles:
        folder = Path(directory) if self.elsewhere is None else self.elsewhere
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text(text)
        return WrittenFiles("10.77.0.12", {name: digest_file(folder / name) for name in files})


class Shelf:
    """A run's checkpoints, what they told the user, and a learner that writes."""

    def __init__(self, directory: Path, **config: object) -> None:
        self.notes: list[str] = []
        self.writer = Writer()
        self.ends: list[bool] = []
        settings = CheckpointConfig.model_validate(config)
        self.checkpoints = Checkpoints(directory, settings, self.notes.append, 0.1)
        self.background = BackgroundCheckpoints(self.checkpoints, settings, self.notes.append, self.ends.append)

    async def save(self, *steps: int) -> None:
        for step in steps:
            await self.background.save(cast(LearnerGroup, self.writer), RunState(step=step))

    async def after_step(self, step: int) -> None:
        await self.background.after_step(cast(LearnerGroup, self.writer), RunState(step=step), lambda: None)

    @property
    def names(self) -> list[str]:
        return [path.name for path in self.checkpoints.all()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


async def test_a_checkpoint_holds_the_model_and_the_state_of_its_step(directory: Path):
    shelf = Shelf(directory)
    await shelf.save(50)
    folder = directory / "step_000050"
    assert {path.name for path in folder.iterdir()} == {"model", "state", "run.json", "manifest.json"}
    assert (folder / "state" / "learner.json").read_text() == "50"
    assert await shelf.checkpoints.newest() == (folder, RunState(step=50))


async def test_only_the_newest_are_kept(directory: Path):
    shelf = Shelf(directory, keep_last=2)
    await shelf.save(9, 10, 100)
    assert shelf.names == ["step_000010", "step_000100"]


async def test_every_so_many_steps_one_is_kept_for_good(directory: Path):
    shelf = Shelf(directory, keep_last=1, keep_every=20)
    await shelf.save(10, 20, 30, 40, 50)
    assert shelf.names == ["step_000020", "step_000040", "step_000050"]


async def test_a_half_written_checkpoint_is_no_checkpoint_and_is_replaced(directory: Path):
    shelf = Shelf(directory)
    shelf.writer.fault = LearnerError("a learner rank died during write_snapshot")
    with pytest.raises(LearnerError):
        await shelf.save(7)
    assert shelf.names == []
    assert await shelf.checkpoints.newest() is None
    assert [path.name for path in directory.iterdir()] == ["step_000007.partial"]
    shelf.writer.fault = None
    await shelf.save(7)
    assert [path.name for path in directory.iterdir()] == ["step_000007"]


async def test_a_step_is_saved_once(directory: Path):
    shelf = Shelf(directory)
    await shelf.save(7, 7)
    assert shelf.writer.num_written == 1


@pytest.mark.parametrize(
    ("name", "harm", "fault"),
    [
        ("state/learner.json", lambda path: path.write_text("21"), "state/learner.json is not what was written"),
        ("state/learner.json", lambda path: path.write_text(""), "state/learner.json is not what was written (0 bytes"),
        ("run.json", Path.unlink, "run.json is missing"),
        ("manifest.json", lambda path: path.write_text("{"), "manifest.json cannot be read"),
        ("manifest.json", lambda path: path.write_text("{}"), "manifest.json does not list run.json"),
        (
            "manifest.json",
            lambda path: path.write_text('{"run.json": {}}'),
            "manifest.json does not list state/learner.json",
        ),
        ("manifest.json", lambda path: path.write_text("3"), "manifest.json cannot be read"),
    ],
)
async def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    directory: Path, name: str, harm: Callable[[Path], object], fault: str
):
    shelf = Shelf(directory)
    await shelf.save(10, 20)
    harm(directory / "step_000020" / name)
    assert await shelf.checkpoints.newest() == (directory / "step_000010", RunState(step=10))
    assert len(shelf.notes) == 1
    assert f"checkpoint {directory / 'step_000020'} is damaged and not used: {fault}" in shelf.notes[0]
    assert {path.name for path in directory.iterdir()} == {"step_000010", "step_000020.damaged"}
    await shelf.save(20)  # made again, it takes its place
    assert await shelf.checkpoints.newest() == (directory / "step_000020", RunState(step=20))


async def test_a_damaged_checkpoint_goes_when_enough_newer_ones_are_whole(directory: Path):
    shelf = Shelf(directory, keep_last=2)
    await shelf.save(10, 20)
    (directory / "step_000020" / "run.json").unlink()
    await shelf.checkpoints.newest()
    await shelf.save(30)
    assert (directory / "step_000020.damaged").exists()
    await shelf.save(40)
    assert sorted(path.name for path in directory.iterdir()) == ["step_000030", "step_000040"]


@pytest.mark.parametrize("scheme", ["file", "memory"])
async def test_copies_at_a_url_are_whole_follow_the_policy_and_come_back(directory: Path, scheme: str):
    url = f"file://{directory.parent.parent}/copies" if scheme == "file" else "memory://copies"
    shelf = Shelf(directory, keep_last=2, url=url)
    await shelf.save(1, 2, 3)
    assert shelf.notes == []
    elsewhere = Shelf(directory.parent.parent / "elsewhere" / "run" / "checkpoints", url=url)
    found = await elsewhere.checkpoints.newest()
    assert found == (elsewhere.checkpoints.directory / "step_000003", RunState(step=3))
    assert elsewhere.names == ["step_000003"]
    if scheme == "file":
        copies = directory.parent.parent / "copies" / "run"
        assert sorted(path.name for path in copies.iterdir()) == ["step_000002", "step_000003"]
        (copies / "step_000003" / "manifest.json").unlink()  # as when the copy was cut short
        third = Shelf(directory.parent.parent / "third" / "run" / "checkpoints", url=url)
        found = await third.checkpoints.newest()
        assert found is not None
        assert found[1].step == 2


async def test_a_url_that_cannot_be_written_is_a_note_and_no_error(directory: Path):
    shelf = Shelf(directory, url="no-such-scheme://bucket")
    await shelf.save(1)
    assert shelf.names == ["step_000001"]
    assert "step_000001 was not copied to checkpoint.url" in shelf.notes[0]


async def test_a_checkpoint_on_a_disk_that_is_not_shared_is_refused_with_its_node_and_the_remedy(
    directory: Path, tmp_path: Path
):
    shelf = Shelf(directory)
    shelf.writer.elsewhere = tmp_path / "disk of another node"
    with pytest.raises(CheckpointError, match=r"json .* on node 10\.77\.0\.12.*set run\.dir to a folder"):
        await shelf.save(4)
    assert list(directory.iterdir()) == []
    assert await shelf.checkpoints.newest() is None


async def test_the_digests_of_the_ranks_are_what_a_checkpoint_is_checked_by(directory: Path):
    shelf = Shelf(directory)
    await shelf.save(4)
    manifest = json.loads((directory / "step_000004" / "manifest.json").read_text())
    assert set(manifest) == {"run.json", "state/learner.json", "state/rank", "model/config.json"}
    assert manifest["state/rank"] == digest_file(directory / "step_000004" / "state" / "rank")


@pytest.mark.parametrize("fault", [CheckpointError("no space left"), OSError(28, "No space left on device")])
async def test_a_checkpoint_that_cannot_be_written_leaves_nothing_and_the_next_one_is_whole(
    directory: Path, fault: Exception
):
    shelf = Shelf(directory)
    await shelf.save(2)
    shelf.writer.fault = fault
    with pytest.raises(CheckpointError, match=r"(?i)no space left"):
        await shelf.save(4)
    assert [path.name for path in directory.iterdir()] == ["step_000002"], "a full disk is not filled further"
    shelf.writer.fault = None
    await shelf.save(5)
    assert shelf.names == ["step_000002", "step_000005"]


async def test_a_disk_without_room_is_found_before_anything_is_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch
):
    shelf = Shelf(directory)
    await shelf.save(2)
    usage = shutil.disk_usage(directory)._replace(free=3)
    monkeypatch.setattr("cluster.state.checkpoints.shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="are free on its disk, and the last checkpoint takes"):
        await shelf.save(4)
    assert shelf.writer.num_written == 1


async def test_a_step_does_not_wait_for_a_slow_disk_and_the_next_checkpoint_and_the_end_do(directory: Path):
    shelf = Shelf(directory, every_steps=2)
    shelf.writer.disk_answers.clear()
    for step in (1, 2, 3):
        await asyncio.wait_for(shelf.after_step(step), WAIT_S)
    assert [path.name for path in directory.iterdir()] == ["step_000002.partial"]
    fourth = asyncio.create_task(shelf.after_step(4))
    await asyncio.sleep(0)
    assert (fourth.done(), shelf.writer.step) == (False, 2), "one at a time"
    shelf.writer.disk_answers.set()
    await asyncio.wait_for(fourth, WAIT_S)
    assert shelf.names == ["step_000002"]
    assert await asyncio.wait_for(shelf.background.save(cast(LearnerGroup, shelf.writer), RunState(step=5)), WAIT_S)
    assert shelf.names == ["step_000004", "step_000005"]
    assert await shelf.checkpoints.newest() == (directory / "step_000005", RunState(step=5))
    assert (shelf.ends, shelf.notes) == ([True, True, True], [])


async def test_one_that_fails_beside_a_step_is_a_note_and_is_tried_again_after_the_next(directory: Path):
    shelf = Shelf(directory, every_steps=2, max_failures=2)
    shelf.writer.fault = OSError(28, "No space left on device")
    await shelf.after_step(2)
    await shelf.background.settle()
    assert list(directory.iterdir()) == []
    assert "no checkpoint of step 2, tried again after the next step" in shelf.notes[0]
    shelf.writer.fault = None
    await shelf.after_step(3)
    await shelf.background.settle()
    assert (shelf.names, shelf.ends, shelf.background.num_failed) == (["step_000003"], [False, True], 1)
    shelf.writer.fault = CheckpointError("no space left")
    for step in (4, 5):
        await shelf.after_step(step)
        await shelf.background.settle()
    with pytest.raises(CheckpointError, match=r"2 checkpoints in a row failed \(checkpoint\.max_failures\): no space"):
        await shelf.after_step(6)
    shelf.writer.fault = None
    await shelf.save(6)
    assert shelf.names == ["step_000003", "step_000006"]


async def test_tries_are_further_and_further_apart_so_that_a_full_disk_outlives_fast_steps(
    directory: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ten steps of a small model took less time than a disk was full for, and the run ended."""
    now_s, tried_at = 0.0, []
    monkeypatch.setattr("cluster.state.background_checkpoints.time.monotonic", lambda: now_s)
    shelf = Shelf(directory, every_steps=2, max_failures=10)
    shelf.writer.fault = OSError(28, "No space left on device")
    step = 1
    while shelf.background.num_failed < 10:
        step, num_failed = step + 1, shelf.background.num_failed
        await shelf.after_step(step)
        await shelf.background.settle()
        tried_at += [now_s] * (shelf.background.num_failed - num_failed)
        now_s += 0.5
    assert tried_at == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 63.5, 123.5, 183.5]
    assert "tried again after a step in 60 s" in shelf.notes[-1]
    with pytest.raises(CheckpointError, match="10 checkpoints in a row failed"):
        await shelf.after_step(step + 1)


async def test_a_learner_that_is_lost_while_it_writes_leaves_no_checkpoint_and_is_told_between_steps(directory: Path):
    shelf = Shelf(directory, every_steps=2)
    await shelf.save(1)
    shelf.writer.fault = LearnerError("a learner rank died during write_snapshot")
    await shelf.after_step(2)
    await asyncio.sleep(0)
    with pytest.raises(LearnerError, match="died during write_snapshot"):
        await shelf.after_step(3)
    assert await shelf.checkpoints.newest() == (directory / "step_000001", RunState(step=1))
    shelf.writer.disk_answers.clear()
    await shelf.after_step(4)
    await asyncio.wait_for(shelf.background.close(wait=False), WAIT_S)
    assert shelf.names == ["step_000001"]


async def test_what_the_user_keeps_beside_the_checkpoints_is_left_alone(directory: Path):
    shelf = Shelf(directory, keep_last=1)
    await shelf.save(50)
    shutil.copytree(directory / "step_000050", directory / "step_000050_best")
    (directory / "step_000050.tar.gz").write_text("x")
    (directory / "step_best").symlink_to("step_000050_best")
    (directory / "step_000099").symlink_to("step_000050_best")
    (directory / "step_7").mkdir()
    theirs = {"step_000050_best", "step_000050.tar.gz", "step_best", "step_000099", "step_7"}
    await shelf.save(60)
    assert shelf.names == ["step_000060"]
    assert await shelf.checkpoints.newest() == (directory / "step_000060", RunState(step=60))
    assert {path.name for path in directory.iterdir()} == {*theirs, "step_000060"}
    assert shelf.notes == []


async def test_checkpoints_are_in_order_of_their_steps_and_not_of_their_names(directory: Path):
    shelf = Shelf(directory, keep_last=2)
    await shelf.save(999_950, 1_000_000)
    assert shelf.names == ["step_999950", "step_1000000"]
    await shelf.save(1_000_050)
    assert shelf.names == ["step_1000000", "step_1000050"]


async def test_an_old_checkpoint_that_cannot_be_removed_is_a_note(directory: Path, monkeypatch: pytest.MonkeyPatch):
    shelf = Shelf(directory, keep_last=1)
    await shelf.save(50)
    remove = shutil.rmtree

    def busy(path: Path, *args: object, **kwargs: object) -> None:
        if path.name == "step_000050":
            raise OSError(39, "Directory not empty", str(path))
        remove(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("cluster.state.checkpoints.shutil.rmtree", busy)
    await shelf.save(60)
    assert shelf.names == ["step_000050", "step_000060"]
    assert ["step_000050 is not wanted any more, and cannot be removed" in note for note in shelf.notes] == [True]


async def test_a_run_file_of_another_version_is_a_damaged_checkpoint(directory: Path):
    shelf = Shelf(directory)
    await shelf.save(10, 20)
    run_file = directory / "step_000020" / "run.json"
    run_file.write_text(json.dumps({**json.loads(run_file.read_text()), "of_a_later_version": 1}))
    manifest = directory / "step_000020" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "run.json": digest_file(run_file)}))
    assert await shelf.checkpoints.newest() == (directory / "step_000010", RunState(step=10))
    assert "run.json cannot be understood" in shelf.notes[0]


def test_a_runs_state_survives_json():
    state = RunState(7, {14: 1, 20: 2}, num_given_up=3, num_failed_groups=9, training_s=1.5, prompts_digest="ab")
    assert RunState.from_json(state.to_json()) == state
    assert json.loads(state.to_json())["step"] == 7


def test_a_run_goes_on_with_the_prompts_that_it_began_with():
    prompts = [Prompt("file:1", "a red star"), Prompt("file:2", "a blue ring")]
    state = RunState(prompts_digest=digest_of(prompts))
    state.check_prompts(prompts, "file.txt")
    RunState().check_prompts(prompts, "file.txt")
    for others in (prompts[::-1], prompts[:1], [prompts[0], Prompt("file:2", "a blue rung")]):
        with pytest.raises(DataError, match=r"file\.txt: these are not the prompts that the run began with"):
            state.check_prompts(others, "file.txt")
