"""The folder of a warm start's model is looked at before anything is trained, and kept tidy."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from configs.errors import ConfigError
from learner.warm_start.output import MAX_WRITING_S, prepare_output, staging_folder


def half_written(folder: Path, age_s: float) -> Path:
    """What a warm start that was killed so long ago has left beside `folder`."""
    path = staging_folder(folder)
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"half")
    for written in (path / "model.safetensors", path):
        os.utime(written, (time.time() - age_s,) * 2)
    return path


def test_what_killed_warm_starts_left_is_swept_and_nothing_else(tmp_path: Path):
    output = tmp_path / "cache" / "model-1"
    old = [half_written(output, MAX_WRITING_S + 60), half_written(tmp_path / "cache" / "model-2", 9 * MAX_WRITING_S)]
    young = half_written(output, 60.0)
    foreign = tmp_path / "cache" / ".of.mine"
    foreign.mkdir()
    whole = tmp_path / "cache" / "model-3"
    whole.mkdir()
    for path in (foreign, whole):
        os.utime(path, (0, 0))
    prepare_output(output)
    assert [path.exists() for path in old] == [False, False]
    assert sorted((tmp_path / "cache").iterdir()) == sorted([young, foreign, whole])


@pytest.mark.parametrize("parent", ["/proc/no/such/folder", __file__])
def test_a_folder_that_cannot_be_written_to_is_refused_with_the_field_that_names_it(parent: str):
    with pytest.raises(ConfigError, match=r"cannot be written to .*; set run\.cache_dir to a folder"):
        prepare_output(Path(parent) / "model")
