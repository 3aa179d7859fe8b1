"""The runs of a study: every arm with every seed, one after the other, each by `cluster.launch` as a user would.

    for each seed: for each arm:   DIR/ARM-seedN/   (left alone when it is finished)  ─► Outcome

Seeds are the outer loop, so that a study that is stopped has compared all arms on the seeds it got to. Started
again, it goes on with the runs that are missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.reports import read_metrics
from cluster.reports.metrics import MetricsRow
from cluster.session.ray_connection import PROJECT_ROOT
from configs.errors import RunError

OUTPUT_NAME = "output.txt"
MAX_SHOWN_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison: a name, and what of the config it changes."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """One question, and the runs that answer it."""

    question: str
    arms: tuple[Arm, ...]
    curves: tuple[str, ...]
    """Keys of metrics.jsonl that are drawn beside the reward."""
    columns: tuple[str, ...] = ()
    """Keys of metrics.jsonl whose mean over the last tenth of the steps is a column of the table."""
    overrides: tuple[str, ...] = ()
    """What all arms change."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often a study runs."""

    config: Path
    directory: Path
    seeds: tuple[int, ...]
    num_steps: int
    overrides: tuple[str, ...]
    """Of the user, over those of the study."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished run."""

    arm: str
    seed: int
    summary: Mapping[str, Any]
    """summary.json, see `cluster.reports.metrics.RunSummary`."""
    rows: Sequence[MetricsRow]
    duration_s: float
    """Start and evaluations included; 0 for a run that was there already."""

    def change(self, evaluation: str) -> float:
        """Reward after training minus reward before it, on one evaluation set."""
        change: float = self.summary[f"{evaluation}_reward_after"] - self.summary[f"{evaluation}_reward_before"]
        return change

    def late_mean(self, key: str) -> float:
        """Mean of a metric over the last tenth of the steps; NaN where it was never finite."""
        values = [value for row in self.rows[-max(1, len(self.rows) // 10) :] if (value := row.get(key)) is not None]
        return sum(values) / len(values) if values else float("nan")


def run_study(study: Study, plan: Plan) -> Iterator[Outcome]:
    """Make the runs that are not there yet, one by one; yields every run of the study.

    Raises RunError when a run fails, with the end of what it printed; KeyboardInterrupt ends the run that is
    going on in good order first.
    """
    for seed in plan.seeds:
        for arm in study.arms:
            yield _finished(arm, seed, plan.directory) or _run(study, arm, seed, plan)


def _run(study: Study, arm: Arm, seed: int, plan: Plan) -> Outcome:
    name = _run_name(arm, seed)
    overrides = [
        *study.overrides,
        *arm.overrides,
        *plan.overrides,
        f"run.name={name}",
        f"run.dir={plan.directory}",
        f"run.seed={seed}",
        f"run.steps={plan.num_steps}",
    ]
    sets = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "cluster.launch", "--config", str(plan.config), *sets]
    output = plan.directory / f"{name}.{OUTPUT_NAME}"
    started_s = time.monotonic()
    _set_aside(plan.directory / name)
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            exit_code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal told it, too: it saves a checkpoint and ends
            raise
    outcome = _finished(arm, seed, plan.directory)
    if outcome is None:
        end = output.read_text(errors="replace")[-MAX_SHOWN_CHARACTERS:]
        raise RunError(f"run {name} ended with exit code {exit_code}; its output is in {output}:\n{end}")
    return Outcome(arm.name, seed, outcome.summary, outcome.rows, time.monotonic() - started_s)


def _finished(arm: Arm, seed: int, directory: Path) -> Outcome | None:
    path = directory / _run_name(arm, seed)
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if summary["status"] != "finished":
        return None
    return Outcome(arm.name, seed, summary, read_metrics(path / "metrics.jsonl"), duration_s=0.0)


def _set_aside(path: Path) -> None:
    """Give an unfinished run another name, so that its successor gets this one."""
    if path.exists():
        path.rename(path.with_name(f"{path.name}.unfinished-{time.time_ns()}"))


def _run_name(arm: Arm, seed: int) -> str:
    return f"{arm.name}-seed{seed}"
