"""The command line, where nothing is started yet: bad input gives one clear error and its exit code."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.launch import main
from cluster.state import RunDirectory, RunState
from cluster.state.checkpoints import write_manifest
from configs.load import load_config
from configs.local.environment import REDIS_URL_VARIABLE


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """The launcher sets variables for the libraries of its process, which here is that of all tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def config_file(tmp_path: Path, model: Path) -> Path:
    tree = {
        "run": {"name": "test", "dir": str(tmp_path / "runs")},
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": "shapes:train:10"},
        "rewards": [{"name": "shapes"}],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def expect_error(arguments: list[str], exit_code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command line; returns its one error."""
    assert main(arguments) == exit_code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def expect_error_after_warning(arguments: list[str], exit_code: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == exit_code
    return capsys.readouterr().err


def test_a_missing_config_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    error = expect_error(["--config", str(tmp_path / "no.yaml")], 2, capsys)
    assert error.strip() == f"error: {tmp_path / 'no.yaml'}: cannot read the config file: No such file or directory"


def test_broken_yaml_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "broken.yaml"
    path.write_text("run:\n  name: x\n  steps: [1, 2\nmodel:\n")
    assert f"{path}:4:" in expect_error(["--config", str(path)], 2, capsys)


def test_an_unknown_key_is_named(config_file: Path, capsys: pytest.CaptureFixture[str]):
    error = expect_error(["--config", str(config_file), "--set", "learner.learning_rate=1e-6"], 2, capsys)
    assert "learner.learning_rate" in error


def test_an_unknown_reward_is_named_with_those_that_exist(config_file: Path, capsys: pytest.CaptureFixture[str]):
    error = expect_error(["--config", str(config_file), "--set", "rewards.0.name=hsp"], 2, capsys)
    assert "'hsp' is not a reward" in error
    assert "grounding_dino, hps, " in error


def test_a_missing_model_folder_is_named(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    error = expect_error(["--config", str(config_file), "--set", f"model.path={tmp_path / 'nowhere'}"], 2, capsys)
    assert f"model.path '{tmp_path / 'nowhere'}' is no folder" in error


def test_a_missing_data_file_is_named(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    error = expect_error(["--config", str(config_file), "--set", f"data.train={tmp_path / 'no.jsonl'}"], 2, capsys)
    assert str(tmp_path / "no.jsonl") in error


def test_more_bad_lines_than_allowed_are_named_with_their_numbers(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a boat"}\n{"prompt": \n{"text": "a tree"}\n')
    overrides = ["--set", f"data.train={path}", "--set", "data.max_bad_lines=1"]
    error = expect_error(["--config", str(config_file), *overrides], 2, capsys)
    assert f"{path}: 2 records are bad, data.max_bad_lines allows 1" in error
    assert "line 2: " in error
    assert "line 3: " in error


def test_a_redis_port_in_use_is_named_with_the_remedy(config_file: Path, capsys: pytest.CaptureFixture[str]):
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        error = expect_error(["--config", str(config_file), "--set", f"registry.redis_port={port}"], 1, capsys)
    assert f"registry.redis_port {port} is in use on this machine; set another port, or 0 to take a free one" in error


def test_a_registry_that_does_not_answer_is_named_before_ray_is_started(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv(REDIS_URL_VARIABLE, f"redis://:secret@127.0.0.1:{port}/0")
    error = expect_error(["--config", str(config_file)], 1, capsys)
    assert f"cannot connect to the run's registry at redis://:***@127.0.0.1:{port}/0" in error
    assert "secret" not in error
    assert not list((tmp_path / "runs" / "test" / "logs").iterdir())


def test_a_run_directory_that_cannot_be_written_is_named(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    error = expect_error(["--config", str(config_file), "--set", f"run.dir={tmp_path / 'file'}"], 2, capsys)
    assert f"run.dir '{tmp_path / 'file'}'" in error


def test_a_dry_run_prints_the_plan_and_starts_nothing(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--config", str(config_file), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "train (shapes:train:10): 10 prompts, 0 skipped" in printed.out
    assert "── placement ──" in printed.out
    assert printed.err == ""
    assert not (tmp_path / "runs").exists()


def test_a_secret_on_the_command_line_is_warned_of_and_not_shown(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    url = "registry.redis_url=redis://:hush@127.0.0.1:1/0"
    assert main(["--config", str(config_file), "--dry-run", "--set", url]) == 0
    printed = capsys.readouterr()
    assert "hush" not in printed.out + printed.err
    assert "--set 'registry.redis_url=${NAME}', or BICOT_REDIS_URL" in printed.err
    assert "hush" not in expect_error_after_warning(["--config", str(config_file), "--set", f"{url}}}: ["], 2, capsys)
    monkeypatch.setenv("PASSWORD", "hush")
    reference = "registry.redis_url=redis://:${PASSWORD}@127.0.0.1:1/0"
    assert main(["--config", str(config_file), "--dry-run", "--set", reference]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "hush" not in printed.out
    assert "${PASSWORD}" in printed.out


def test_a_secret_of_the_environment_that_is_not_set_is_named(config_file: Path, capsys: pytest.CaptureFixture[str]):
    for more in ([], ["--dry-run"]):
        arguments = ["--config", str(config_file), "--set", "checkpoint.url=s3://${NOT_SET}/x", *more]
        assert "checkpoint.url: the environment variable NOT_SET is not set" in expect_error(arguments, 2, capsys)


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "there is no run here" in expect_error(["--resume", str(tmp_path)], 2, capsys)


def test_a_resumed_runs_seed_cannot_be_changed(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--resume", str(config_file.parent), "--set", "run.seed=1"]
    assert "--set run.seed: a run that goes on must keep it at 0" in expect_error(arguments, 2, capsys)


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--config", "--resume", "--set", "--dry-run"))


def test_a_config_beside_a_run_that_goes_on_is_refused(config_file: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--resume", str(config_file.parent), "--config", str(config_file)]
    assert "a run goes on with the config in its own directory" in expect_error(arguments, 2, capsys)


def test_a_refused_resume_leaves_the_summary_as_it_was(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    directory = RunDirectory.create(load_config(config_file))
    directory.summary_path.write_text('{"status": "stopped", "steps": 3}')
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "RAY_ADDRESS" in expect_error_after_warning(["--resume", str(directory.path)], 2, capsys)
    assert directory.summary_path.read_text() == '{"status": "stopped", "steps": 3}'


def test_fewer_steps_than_were_made_are_refused(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    directory = RunDirectory.create(load_config(config_file))
    checkpoint = directory.checkpoints_dir / "step_000063"
    checkpoint.mkdir()
    (checkpoint / "run.json").write_text(RunState(step=63).to_json())
    write_manifest(checkpoint)
    arguments = ["--resume", str(directory.path), "--set", "run.steps=5"]
    assert "run.steps=5: this run has made 63 steps already" in expect_error_after_warning(arguments, 2, capsys)
