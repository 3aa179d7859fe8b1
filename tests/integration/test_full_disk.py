"""Checkpoints that a rank of the learner cannot write: all ranks hear of it, and the next one is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.schema import RunConfig
from tests.integration.learner_ranks import Job, run_jobs
from tests.integration.training import run_tree

pytestmark = pytest.mark.timeout(300)


def test_a_rank_that_cannot_write_leaves_no_other_waiting_and_the_next_checkpoint_is_whole(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        run_tree("disk", tmp_path, learner={"num_ranks": 2, "zero_stage": 1, "micro_batch_size": 2})
    )
    full, model = tmp_path / "full", tmp_path / "model"
    # A folder in the place of the second rank's file, which is the only one that cannot write.
    (full / "state" / "rank_00001.safetensors").mkdir(parents=True)
    model.mkdir()
    (model / ".model.new").write_text("in the place of the folder that is written, and then renamed")
    results = run_jobs(
        [
            Job("state", config, [], checkpoint_to=full),
            Job("model", config, [], checkpoint_to=model),
            Job("whole", config, [], checkpoint_to=tmp_path / "whole"),
        ],
        2,
        tmp_path,
    )
    assert (results["state"].faults[1] or "").startswith(f"cannot write the learner's state to {full}/state: rank 1: ")
    assert results["state"].faults[0] is None, "each rank writes for itself"
    assert (results["model"].faults[0] or "").startswith(f"cannot write the model to {model}/model: rank 0: ")
    assert results["whole"].faults == [None, None]
    whole = tmp_path / "whole"
    assert json.loads((whole / "state" / "learner.json").read_text())["num_parts"] == 2
    assert (whole / "model" / "config.json").is_file()
