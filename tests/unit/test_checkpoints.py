"""Which checkpoints are there: whole ones only, and the newest only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from cluster.checkpoints import Checkpoints
from cluster.learner_group import LearnerGroup
from configs.errors import LearnerError


class Writer:
    """Writes like the learner's ranks; `dies` after the state and before the model."""

    def __init__(self, dies: bool = False) -> None:
        self.dies = dies
        self.num_saved = 0

    async def save_checkpoint(self, directory: str, client_state: dict[str, Any]) -> None:
        self.num_saved += 1
        Path(directory).mkdir()
        (Path(directory) / "step").write_text(str(client_state["step"]))

    async def save_pretrained(self, directory: str) -> None:
        if self.dies:
            raise LearnerError("a learner rank died during save_pretrained")
        Path(directory).mkdir()


def make(tmp_path: Path, keep_last: int = 2, dies: bool = False) -> tuple[Checkpoints, LearnerGroup]:
    return Checkpoints(tmp_path / "checkpoints", keep_last), cast(LearnerGroup, Writer(dies))


async def test_a_checkpoint_holds_the_model_and_the_state_of_its_step(tmp_path: Path):
    checkpoints, learner = make(tmp_path)
    folder = await checkpoints.save(learner, 50)
    assert folder == tmp_path / "checkpoints" / "step_000050"
    assert {path.name for path in folder.iterdir()} == {"model", "state"}
    assert (folder / "state" / "step").read_text() == "50"


async def test_only_the_newest_are_kept(tmp_path: Path):
    checkpoints, learner = make(tmp_path, keep_last=2)
    for step in (9, 10, 100):
        await checkpoints.save(learner, step)
    assert [path.name for path in checkpoints.all()] == ["step_000010", "step_000100"]


async def test_a_half_written_checkpoint_is_no_checkpoint_and_is_replaced(tmp_path: Path):
    checkpoints, dying = make(tmp_path, dies=True)
    with pytest.raises(LearnerError):
        await checkpoints.save(dying, 7)
    assert checkpoints.all() == []
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step_000007.partial"]
    await checkpoints.save(make(tmp_path)[1], 7)
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step_000007"]


async def test_a_step_is_saved_once(tmp_path: Path):
    checkpoints, learner = make(tmp_path)
    assert await checkpoints.save(learner, 7) == await checkpoints.save(learner, 7)
    assert cast(Writer, learner).num_saved == 1
