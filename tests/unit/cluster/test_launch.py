"""The command line, where nothing is started yet: bad input gives one clear error and its exit code."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cluster.launch import main
from cluster.state import RunDirectory, RunState
from cluster.state.manifest import MODEL_FILE, RUN_FILE, STATE_FILE, write_manifest
from configs.load import load_config
from configs.local.environment import REDIS_URL_VARIABLE
from tests.tiny_models import tiny_janus_folder


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """The launcher sets variables for the libraries of its process, which here is that of all tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def model() -> Path:
    return tiny_janus_folder()


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
    assert "run.seed: a run that goes on must keep it at 0" in expect_error(arguments, 2, capsys)


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--config", "--resume", "--set", "--dry-run"))


def test_a_config_beside_a_run_that_goes_on_is_refused(config_file: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--resume", str(config_file.parent), "--config", str(config_file)]
    assert "a run goes on with the config in its own directory" in expect_error(arguments, 2, capsys)


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def broken_model(tmp_path: Path) -> Path:
    """A copy of the tiny model, for a test to break."""
    return Path(shutil.copytree(tiny_janus_folder(), tmp_path / "broken_model"))


def break_model(folder: Path, fault: str) -> None:
    if fault == "format":
        (folder / "config.json").write_text('{"model_type": "multi_modality"}')
    elif fault == "template":
        for name in ("chat_template.jinja", "chat_template.json", "processor_config.json"):
            (folder / name).unlink(missing_ok=True)
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        settings.pop("chat_template", None)
        path.write_text(json.dumps(settings))
    else:
        for path in folder.glob("*.safetensors"):
            path.write_text(LFS_POINTER)


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
class TestWhatIsRefusedByTheDryRunAndByTheRunBeforeAnythingStarts:
    def refusal_of(
        self, config_file: Path, dry_run: list[str], capsys: pytest.CaptureFixture[str], *overrides: str
    ) -> str:
        sets = [argument for override in overrides for argument in ("--set", override)]
        error = expect_error(["--config", str(config_file), *dry_run, *sets], 2, capsys)
        assert not (config_file.parent / "runs").exists()
        return error

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["rewards.0.name=rewards.shapes.reward:ShapesReword"], "cannot import rewards.shapes.reward:ShapesReword"),
            (["rewards.0.name=no_such_module:score"], "No module named 'no_such_module'"),
            (["rewards.shapes.options={target: 0.5}"], "'shapes' does not take options {'target': 0.5}"),
            (["learner.betas=[0.9, 1.5]"], "learner.betas.1 = 1.5: Input should be less than 1"),
            (["data.evaluation={a/b: 'shapes:heldout:4'}"], "'a/b' becomes part of file names"),
            (["warm_start={examples: no_such_file.jsonl}"], "no_such_file.jsonl: cannot read the examples"),
        ],
    )
    def test_a_wrong_field(
        self,
        config_file: Path,
        dry_run: list[str],
        overrides: list[str],
        message: str,
        capsys: pytest.CaptureFixture[str],
    ):
        assert message in self.refusal_of(config_file, dry_run, capsys, *overrides)

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("format", "is in its authors' own format; convert it once"),
            ("template", "no chat template in tokenizer_config.json"),
            ("weights", "model.safetensors cannot be read"),
        ],
    )
    def test_a_model_folder_that_cannot_be_used(
        self,
        config_file: Path,
        dry_run: list[str],
        broken_model: Path,
        fault: str,
        message: str,
        capsys: pytest.CaptureFixture[str],
    ):
        break_model(broken_model, fault)
        assert message in self.refusal_of(config_file, dry_run, capsys, f"model.path={broken_model}")

    @pytest.mark.parametrize("field", ["run.dir", "run.cache_dir"])
    def test_a_folder_that_cannot_be_written_to(
        self, config_file: Path, dry_run: list[str], field: str, capsys: pytest.CaptureFixture[str]
    ):
        examples = config_file.parent / "x.jsonl"
        Image.new("RGB", (8, 8)).save(config_file.parent / "x.png")
        examples.write_text('{"prompt": "a", "plan": "b", "image": "x.png"}\n')
        overrides = [f"warm_start={{examples: '{examples}'}}", f"{field}=/proc/no/such/folder"]
        refusal = self.refusal_of(config_file, dry_run, capsys, *overrides)
        assert f"{field} '/proc/no/such/folder" in refusal
        assert "cannot be made, since /proc cannot be written to" in refusal


@pytest.mark.parametrize("name", ["rewards.py", "learner.py", "configs/__init__.py", "rollout/__init__.py"])
def test_a_file_that_hides_a_package_of_bicot_is_named(tmp_path: Path, name: str):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    ended = run_elsewhere(tmp_path, "--help")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f"error: {path} hides bicot's own package '{name.split('/')[0].removesuffix('.py')}'"
    )
    assert "Traceback" not in ended.stderr


def test_the_default_config_is_found_wherever_the_command_is_started(tmp_path: Path):
    (tmp_path / "configs").mkdir()  # a folder of the user's, which hides nothing
    ended = run_elsewhere(tmp_path, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "train (shapes:train)" in ended.stdout


def run_elsewhere(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m cluster.launch` in another folder than the checkout."""
    command = (sys.executable, "-m", "cluster.launch", *arguments)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_reward_with_packages_of_its_own_is_not_imported_by_the_launcher(
    config_file: Path, capsys: pytest.CaptureFixture[str]
):
    own = "rewards=[{name: 'only_in_its_own_environment:Taste', runtime_env: {pip: [taste]}}]"
    assert main(["--config", str(config_file), "--dry-run", "--set", own]) == 0
    assert "only_in_its_own_environment:Taste" in capsys.readouterr().out


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
    for name in (RUN_FILE, STATE_FILE, MODEL_FILE):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text(RunState(step=63).to_json() if name == RUN_FILE else "{}")
    write_manifest(checkpoint, {})
    arguments = ["--resume", str(directory.path), "--set", "run.steps=5"]
    assert "run.steps=5: this run has made 63 steps already" in expect_error_after_warning(arguments, 2, capsys)
