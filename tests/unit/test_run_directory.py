"""Where a run writes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from cluster.run_directory import RunDirectory, resolve_root
from configs.errors import ConfigError
from configs.schema import RunConfig


def run_config(run_dir: Path | str, name: str = "trial") -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": name, "dir": str(run_dir), "steps": 7},
            "model": {"path": "some/model", "dtype": "float32"},
            "data": {"train": "prompts.txt"},
            "rewards": [{"name": "shapes"}],
        }
    )


def test_a_new_run_directory_holds_its_resolved_config_and_its_folders(tmp_path: Path) -> None:
    directory = RunDirectory.create(run_config(tmp_path / "runs"))
    assert directory.path == tmp_path / "runs" / "trial"
    assert directory.note is None
    config = yaml.safe_load(directory.config_path.read_text())
    assert config["run"]["steps"] == 7
    assert config["algorithm"]["group_size"] == 8, "defaults are written out"
    assert directory.samples_dir.is_dir()
    assert directory.checkpoints_dir.is_dir()
    assert directory.logs_dir.is_dir()
    assert directory.samples_path(40) == directory.path / "samples" / "step_000040.png"


def test_a_second_run_takes_the_next_name_and_touches_nothing(tmp_path: Path) -> None:
    first = RunDirectory.create(run_config(tmp_path))
    first.metrics_path.write_text("kept")
    second, third = RunDirectory.create(run_config(tmp_path)), RunDirectory.create(run_config(tmp_path))
    assert (second.name, third.name) == ("trial-2", "trial-3")
    assert second.note is not None
    assert "already holds a run" in second.note
    assert first.metrics_path.read_text() == "kept"


def test_an_empty_folder_is_used_and_a_file_of_that_name_is_not(tmp_path: Path) -> None:
    (tmp_path / "trial").write_text("a file")
    (tmp_path / "trial-2").mkdir()
    assert RunDirectory.create(run_config(tmp_path)).name == "trial-2"


def test_launchers_that_start_at_once_get_directories_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        directories = list(threads.map(lambda _: RunDirectory.create(run_config(tmp_path)), range(8)))
    assert len({directory.path for directory in directories}) == 8


def test_a_relative_directory_is_relative_to_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_root("runs") == (tmp_path / "runs", None)
    assert resolve_root("/data/runs") == (Path("/data/runs"), None)


def test_in_a_ray_job_a_relative_directory_is_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root, note = resolve_root("runs")
    assert root == tmp_path / "home" / "runs"
    assert note is not None
    assert str(root) in note
    assert resolve_root("~/elsewhere") == (tmp_path / "home" / "elsewhere", None)


def test_a_directory_that_cannot_be_written_names_run_dir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"run\.dir .*set run\.dir to a folder you may write to"):
        RunDirectory.create(run_config(tmp_path / "file" / "runs"))


def test_a_missing_permission_names_run_dir() -> None:
    with pytest.raises(ConfigError, match=r"run\.dir '/proc/bicot'"):
        RunDirectory.create(run_config("/proc/bicot"))
