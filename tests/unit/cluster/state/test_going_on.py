"""Which run a launcher goes on with, also where its directory has gone and its copies have not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.launch import main
from cluster.state import RunDirectory
from cluster.state.checkpoint_copies import CheckpointCopies
from cluster.state.going_on import find_named, find_or_none
from cluster.state.run_copies import RunCopies, catch_up
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import RunConfig
from tests.tiny_models import tiny_janus_folder

CONFIG = """
run: {name: trial, steps: 7, dir: %(root)s/%(host)s}
model: {path: %(model)s, dtype: float32}
data: {train: "shapes:train:10"}
rewards: [{name: shapes}]
checkpoint: {url: "file://%(root)s/copies"}
"""


def config_file(root: Path, host: str) -> Path:
    path = root / f"{host}.yaml"
    path.write_text(CONFIG % {"root": root, "host": host, "model": tiny_janus_folder()})
    return path


def config_on(root: Path, host: str) -> RunConfig:
    """As it is on one host of several that share no disk: run.dir differs, checkpoint.url does not."""
    return load_config(config_file(root, host))


def make_steps(directory: RunDirectory, config: RunConfig, last: int) -> None:
    """What a run leaves after `last` steps, here and at its copies."""
    checkpoint = directory.checkpoints_dir / f"step_{last:06d}"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text(f'"{last}"')
    directory.metrics_path.write_text("".join(f'{{"step": {step + 1}}}\n' for step in range(last)))
    assert config.checkpoint.url is not None
    CheckpointCopies(config.checkpoint.url, directory.key, lambda *_: True).add(checkpoint)
    RunCopies(config.checkpoint.url, directory.key).add(directory.path)


def steps_in(directory: RunDirectory) -> int:
    return len(directory.metrics_path.read_text().splitlines())


def test_auto_begins_a_run_once_and_then_goes_on_with_it(tmp_path: Path) -> None:
    config = config_on(tmp_path, "a")
    assert find_or_none(config) is None
    begun = RunDirectory.create(config, exactly=True)
    found = find_or_none(config)
    assert found is not None
    assert (found.path, found.key) == (begun.path, begun.key)


def test_auto_does_not_begin_a_run_where_it_would_not_find_it_again(tmp_path: Path) -> None:
    (tmp_path / "a" / "trial").mkdir(parents=True)
    (tmp_path / "a" / "trial" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="trial: this folder holds something else than a run"):
        RunDirectory.create(config_on(tmp_path, "a"), exactly=True)
    assert not (tmp_path / "a" / "trial-2").exists()


def test_a_run_whose_directory_is_gone_goes_on_from_its_copies(tmp_path: Path) -> None:
    config = config_on(tmp_path, "a")
    lost = RunDirectory.create(config, exactly=True)
    make_steps(lost, config, 4)
    key = lost.key
    shutil.rmtree(lost.path)
    found = find_or_none(config)
    assert found is not None
    assert (found.path, found.key) == (lost.path, key)
    told = catch_up(found, config)
    assert told is not None
    assert told.startswith("the checkpoint of step 4 is brought from ")
    assert (found.checkpoints_dir / "step_000004" / "manifest.json").read_text() == '"4"'
    assert steps_in(found) == 4
    assert catch_up(found, config) is None, "there is nothing newer"


def test_a_run_that_comes_back_to_a_host_does_not_go_on_from_what_that_host_remembers(tmp_path: Path) -> None:
    first, second = config_on(tmp_path, "a"), config_on(tmp_path, "b")
    on_first = RunDirectory.create(first, exactly=True)
    make_steps(on_first, first, 2)
    on_second = find_or_none(second)
    assert on_second is not None
    assert on_second.key == on_first.key
    assert on_second.path == tmp_path / "b" / "trial"
    make_steps(on_second, second, 6)
    again = find_or_none(first)
    assert again is not None
    assert again.path == on_first.path
    assert catch_up(again, first) is not None
    assert steps_in(again) == 6
    assert sorted(path.name for path in again.checkpoints_dir.iterdir()) == ["step_000002", "step_000006"]


def test_a_run_can_be_named_by_the_address_of_its_copies(tmp_path: Path) -> None:
    config = config_on(tmp_path, "a")
    lost = RunDirectory.create(config)
    make_steps(lost, config, 3)
    key = lost.key
    shutil.rmtree(lost.path)
    found = find_named(f"file://{tmp_path}/copies/{key}")
    assert (found.path, found.key) == (lost.path, key)
    with pytest.raises(ConfigError, match="copies/other: there is no copy of a run here"):
        find_named(f"file://{tmp_path}/copies/other")


def test_two_runs_of_one_name_at_one_address_are_named_and_none_is_taken(tmp_path: Path) -> None:
    keys = []
    for host in ("a", "b"):
        config = config_on(tmp_path, host)
        directory = RunDirectory.create(config)
        make_steps(directory, config, 1)
        keys.append(directory.key)
    with pytest.raises(ConfigError, match=f"holds 2 runs called 'trial' .{', '.join(sorted(keys))}."):
        find_or_none(config_on(tmp_path, "c"))


def test_copies_that_cannot_be_read_are_told_where_there_is_something_to_go_on_with(tmp_path: Path) -> None:
    config = config_on(tmp_path, "a")
    directory = RunDirectory.create(config)
    away = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"url": "no-such://bucket"})})
    with pytest.raises(ConfigError, match=r"no-such://bucket/trial-.*: cannot read the copies of the run: ValueError"):
        catch_up(directory, away)
    make_steps(directory, config, 2)
    assert "going on with what is here" in (catch_up(directory, away) or "")


def test_auto_ends_well_when_the_run_is_finished_and_refuses_another_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(tmp_path, "a")
    directory = RunDirectory.create(load_config(path))
    directory.summary_path.write_text(json.dumps({"status": "finished", "steps": 7}))
    auto = ["--config", str(path), "--resume", "auto"]
    assert main(auto) == 0
    assert "this run has made all its 7 steps" in capsys.readouterr().out
    assert main([*auto, "--set", "run.seed=3"]) == 2
    assert "run.seed: a run that goes on must keep it at 0, not 3" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["trial"]
