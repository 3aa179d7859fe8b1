"""A launcher that is killed without warning, and goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.reports import read_metrics
from cluster.reports.metrics import MetricsRow
from cluster.session.stop_signals import still_alive
from tests.integration.training import run_tree, train

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 7
LIFE_TIMEOUT_S = 240.0
RAY_AGENTS = ("DashboardAgent", "RuntimeEnvAgent")

pytestmark = [pytest.mark.slow, pytest.mark.proof, pytest.mark.timeout(900)]


def make_tree(name: str, directory: Path) -> dict[str, object]:
    return run_tree(
        name,
        directory,
        run={"steps": NUM_STEPS, "deterministic": True},
        algorithm={"max_staleness": 0},
        checkpoint={"every_steps": 2, "keep_last": 2},
        data={"evaluation": {"heldout": "shapes:heldout"}, "num_evaluation_prompts": 2},
    )


def launch_and_kill(arguments: list[str], output: Path, is_time: Callable[[], bool]) -> None:
    """Start a launcher, and send it SIGKILL when it `is_time`; nothing of it may live on."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.launch", *arguments], cwd=ROOT, stdout=file, stderr=file
        )
    deadline = time.monotonic() + LIFE_TIMEOUT_S
    while not is_time():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it ended with {process.poll()}, or nothing happened: {output.read_text()}")
        time.sleep(0.005)
    # Ray's own agents look for their raylet only now and then; they hold nothing of the run, and end later.
    children = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if not any(name in " ".join(child.cmdline()) for name in RAY_AGENTS)
    ]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    alive = still_alive(children, patience_s=60)
    assert alive == [], "a killed launcher leaves no process behind"


def sequence_of(rows: list[MetricsRow]) -> list[tuple[float | None, ...]]:
    return [(row["step"], row["weight_version"], row["loss"], row["reward/mean"]) for row in rows]


def test_a_launcher_killed_three_times_makes_the_steps_of_one_that_never_was(ray_cluster: None, tmp_path: Path) -> None:
    """Killed after a step, in the middle of one, and while a checkpoint is written: bit for bit the same."""
    whole = asyncio.run(train(make_tree("whole", tmp_path)))
    assert whole.error is None

    run, output = tmp_path / "killed", tmp_path / "output.txt"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(make_tree("killed", tmp_path)))

    def num_rows() -> int:
        metrics = run / "metrics.jsonl"
        return len(read_metrics(metrics)) if metrics.exists() else 0

    same = ["--config", str(config), "--resume", "auto"]  # as a supervisor starts it, again and again
    launch_and_kill(same, output, lambda: num_rows() == 1)
    assert not list((run / "checkpoints").iterdir())
    launch_and_kill(same, output, lambda: num_rows() == 3)
    assert (run / "checkpoints" / "step_000002").is_dir()
    partial = run / "checkpoints" / "step_000004.partial" / "state"
    launch_and_kill(["--resume", str(run)], output, partial.exists)
    assert not (run / "checkpoints" / "step_000004").exists()

    last = subprocess.run(
        [sys.executable, "-m", "cluster.launch", "--resume", str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIFE_TIMEOUT_S,
    )
    assert last.returncode == 0, last.stdout + last.stderr
    assert "going on from step 2" in last.stdout
    assert sequence_of(read_metrics(run / "metrics.jsonl")) == sequence_of(whole.rows)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", NUM_STEPS)
    assert whole.summary is not None
    change = whole.summary.evaluation["heldout"]
    assert (summary["heldout_reward_before"], summary["heldout_reward_after"]) == (change.before, change.after)
    assert "before training" not in last.stdout, "what was before is remembered, not measured again"
    assert (run / "samples" / "before_after_heldout.png").is_file()
