"""Where a run writes."""

from __future__ import annotations

import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from cluster.state import RunDirectory
from cluster.state.going_on import check_is_unfinished, find_latest
from cluster.state.run_directory import resolve_root
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


def test_a_run_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    config = run_config(tmp_path / "runs")
    directory = RunDirectory.create(config)
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.config_path.stat().st_mode) == 0o600
    directory.write_config(config.model_copy(update={"run": config.run.model_copy(update={"steps": 8})}))
    assert stat.S_IMODE(directory.config_path.stat().st_mode) == 0o600


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


def test_the_latest_run_is_the_one_begun_last(tmp_path: Path) -> None:
    for place, name in enumerate(["old", "newest", "older"]):
        directory = RunDirectory.create(run_config(tmp_path, name))
        begun_s = {"old": 100, "newest": 300, "older": 200}[name] + place
        os.utime(directory.config_path, (begun_s, begun_s))
    assert find_latest(str(tmp_path)).name == "newest"
    with pytest.raises(ConfigError, match="--resume latest: there is no run in"):
        find_latest(str(tmp_path / "empty"))


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no run here \(config\.yaml is missing\)"):
        RunDirectory.open(tmp_path)


def test_two_launchers_cannot_run_in_one_directory(tmp_path: Path) -> None:
    directory = RunDirectory.create(run_config(tmp_path))
    assert not directory.is_in_use()
    with directory.locked():
        assert directory.is_in_use()
        with pytest.raises(ConfigError, match="another launcher runs here"), directory.locked():
            pytest.fail("locked twice")
    assert not directory.is_in_use()


def test_a_finished_run_needs_more_steps_to_go_on(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    directory = RunDirectory.create(config)
    check_is_unfinished(directory, config)
    directory.summary_path.write_text(json.dumps({"status": "stopped", "steps": 3}))
    check_is_unfinished(directory, config)
    directory.summary_path.write_text(json.dumps({"status": "finished", "steps": 7}))
    with pytest.raises(ConfigError, match=r"has made all its 7 steps; raise run\.steps"):
        check_is_unfinished(directory, config)
    check_is_unfinished(directory, config.model_copy(update={"run": config.run.model_copy(update={"steps": 8})}))


def test_a_changed_config_is_written_down(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    directory = RunDirectory.create(config)
    directory.write_config(config.model_copy(update={"run": config.run.model_copy(update={"steps": 8})}))
    assert yaml.safe_load(directory.config_path.read_text())["run"]["steps"] == 8


def test_two_runs_of_one_name_have_keys_of_their_own_that_move_with_them(tmp_path: Path) -> None:
    first, second = RunDirectory.create(run_config(tmp_path / "a")), RunDirectory.create(run_config(tmp_path / "b"))
    assert first.name == second.name == "trial"
    assert first.key != second.key
    assert first.key.startswith("trial-")
    assert RunDirectory.open(first.path).key == first.key
    key = first.key
    moved = first.path.rename(tmp_path / "elsewhere")
    assert RunDirectory.open(moved).key == key
    (moved / "run_key").unlink()
    assert RunDirectory.open(moved).key == "elsewhere", "of an older bicot"


def test_a_mounted_volume_that_nobody_has_written_to_is_used(tmp_path: Path) -> None:
    (tmp_path / "trial" / "lost+found").mkdir(parents=True)
    (tmp_path / "trial" / ".nfs0001").write_text("")
    directory = RunDirectory.create(run_config(tmp_path))
    assert directory.name == "trial"
    assert directory.note is None


def test_the_latest_run_is_one_that_has_something_to_go_on_with(tmp_path: Path) -> None:
    begun, failed = RunDirectory.create(run_config(tmp_path, "begun")), RunDirectory.create(run_config(tmp_path, "no"))
    begun.metrics_path.write_text('{"step": 1}\n')
    os.utime(failed.config_path, (2_000_000_000, 2_000_000_000))
    assert find_latest(str(tmp_path)).name == "begun"


def test_who_looks_whether_a_run_is_in_use_keeps_no_launcher_out(tmp_path: Path) -> None:
    directory = RunDirectory.create(run_config(tmp_path))
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            directory.is_in_use()

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(300):
            with directory.locked():
                assert directory.is_in_use()
    finally:
        is_over.set()
        reader.join()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"status": "finis'])
def test_a_summary_that_was_cut_off_is_none(tmp_path: Path, text: str) -> None:
    config = run_config(tmp_path)
    directory = RunDirectory.create(config)
    directory.summary_path.write_text(text)
    check_is_unfinished(directory, config)


def test_a_lock_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    directory = RunDirectory.create(run_config(tmp_path))
    (directory.path / "lock").mkdir()
    with pytest.raises(ConfigError, match="lock: cannot open this file"), directory.locked():
        pytest.fail("locked")
