"""The files for SkyPilot, Slurm and Docker, as far as they can be checked without either."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.launch import build_parser
from cluster.session.placement import plan_placement
from configs.load import load_config

ROOT = Path(__file__).resolve().parents[3]
CLOUDS = ROOT / "cluster" / "clouds"


def tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (the extra `dev`)")
    return found


def lint(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, input=text, cwd=ROOT, timeout=60)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def num_gpus() -> int:
    return plan_placement(load_config(ROOT / "configs" / "janus_pro_7b_cluster.yaml")).num_gpus


def test_hadolint_finds_no_fault_in_the_dockerfile() -> None:
    assert lint(tool("hadolint"), "Dockerfile") == ""


@pytest.mark.parametrize("script", ["scripts/setup.sh", "cluster/clouds/slurm.sbatch", ".ci/run"])
def test_shellcheck_finds_no_fault(script: str) -> None:
    assert lint(tool("shellcheck"), script) == ""


def test_shellcheck_finds_no_fault_in_what_skypilot_runs() -> None:
    task = yaml.safe_load((CLOUDS / "skypilot.yaml").read_text(encoding="utf-8"))
    assert lint(tool("shellcheck"), "--shell=bash", "-", text=task["run"]) == ""


def test_skypilot_takes_its_file_and_finds_a_misspelt_key() -> None:
    """BICOT_SKYPILOT_PYTHON: the Python of an environment that has SkyPilot, which needs one of its own."""
    python = os.environ.get("BICOT_SKYPILOT_PYTHON", "")
    if not Path(python or "/nowhere").is_file():
        pytest.skip("BICOT_SKYPILOT_PYTHON names no Python that has SkyPilot")
    read = "import sky, sys, yaml; print(sky.Task.from_yaml_config(yaml.safe_load(sys.stdin)).num_nodes)"
    text = (CLOUDS / "skypilot.yaml").read_text(encoding="utf-8")
    assert lint(python, "-c", read, text=text) == ""
    assert "did you mean 'use_spot'" in lint(python, "-c", read, text=text.replace("use_spot", "use_spto"))


def test_skypilots_nodes_hold_the_plan() -> None:
    task = yaml.safe_load((CLOUDS / "skypilot.yaml").read_text(encoding="utf-8"))
    card, _, count = task["resources"]["accelerators"].partition(":")
    assert (card, task["num_nodes"] * int(count)) == ("H100", num_gpus())


def test_slurms_nodes_hold_the_plan() -> None:
    lines = (CLOUDS / "slurm.sbatch").read_text(encoding="utf-8").splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert int(options["nodes"]) * int(options["gpus-per-node"]) == num_gpus()


def shell_of(name: str) -> str:
    """What a platform runs in a shell."""
    text = (CLOUDS / name).read_text(encoding="utf-8")
    if not name.endswith(".yaml"):
        return text
    tree = yaml.safe_load(text)
    return str(tree["run"] if "run" in tree else tree["spec"]["entrypoint"])


@pytest.mark.parametrize("name", ["skypilot.yaml", "slurm.sbatch", "kuberay/rayjob.yaml"])
def test_the_launcher_takes_the_options_that_it_is_given(name: str) -> None:
    (line,) = [line for line in shell_of(name).replace("\\\n", " ").splitlines() if "-m cluster.launch" in line]
    words = line.partition("-m cluster.launch")[2].rstrip(" &").split()
    options = build_parser().parse_args(words)
    assert options.resume == "auto"


def test_the_image_has_no_secret_and_no_run_of_its_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".git", ".venv", "runs"} <= set(ignored)
