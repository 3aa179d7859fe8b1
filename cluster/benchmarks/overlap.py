"""The whole system, synchronous against one step stale: launcher, Ray, vLLM, rewards, DeepSpeed, Redis.

run(max_staleness 0) ─► metrics.jsonl ─┐
run(max_staleness 1) ─► metrics.jsonl ─┴─► steps a second, and where a step's time goes
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from cluster.benchmarks.models import SHAPES_CONFIG, make_model, random_model_overrides
from cluster.benchmarks.report import Scope, Table, ratio, spread
from cluster.reports import read_metrics
from cluster.session.ray_connection import PROJECT_ROOT
from configs.errors import RunError
from configs.schema import TinyJanusConfig

STALENESS = (0, 1)
NUM_WARM_UP_STEPS = 2
"""Left out: the first batch is rolled without overlap in both."""
RUN_TIMEOUT_S = 400.0
TIMES = ("time/step_s", "time/wait_s", "time/learn_s", "time/sync_s", "time/rollout_s")


def measure(scope: Scope) -> list[Table]:
    """Runs of a few steps, in turns."""
    num_steps, num_rounds = scope.pick(quick=5, full=10), scope.pick(quick=1, full=2)
    medians: dict[int, list[dict[str, float]]] = {staleness: [] for staleness in STALENESS}
    with tempfile.TemporaryDirectory(prefix="bicot-bench-", ignore_cleanup_errors=True) as directory:
        folder, size = make_model(Path(directory), "tiny", TinyJanusConfig())
        for number in range(num_rounds):
            for staleness in STALENESS:
                name = f"stale{staleness}-{number}"
                overrides = [f"algorithm.max_staleness={staleness}"]
                steps = run_steps(Path(directory), name, folder, overrides, num_steps)
                medians[staleness].append({key: median(row[key] for row in steps) for key in TIMES})
    synchronous, overlapped = (medians[staleness] for staleness in STALENESS)
    rates = [[1 / row["time/step_s"] for row in rows] for rows in (synchronous, overlapped)]
    rows = [("steps a second", spread(rates[0]), spread(rates[1]), ratio(rates[1], rates[0]))]
    for key in TIMES:
        before, after = ([row[key] for row in rows_of] for rows_of in (synchronous, overlapped))
        rows.append((f"`{key}`", spread(before), spread(after), ""))
    return [
        Table(
            "Overlap: the whole system with `max_staleness` 0 and 1",
            f"`configs/shapes_cpu.yaml` through `cluster.launch`: 16 groups of 8 a step, {num_steps} steps, the first "
            f"{NUM_WARM_UP_STEPS} left out; {num_rounds} run(s) of each. A random policy of {size}: it writes longer "
            "plans than a trained one, so rollout weighs more than in training. Times in seconds.",
            ("", "0 (synchronous)", "1 (overlapped)", "1 / 0"),
            tuple(rows),
        )
    ]


def run_steps(
    directory: Path, name: str, folder: str, overrides: Sequence[str], num_steps: int
) -> list[dict[str, float]]:
    """`TIMES` of the steps that count, of a run of the shipped config through the launcher."""
    _launch(
        [
            *random_model_overrides(folder, name),
            f"run.dir={directory}",
            f"run.steps={num_steps}",
            "data.evaluation={}",
            f"samples.every_steps={num_steps}",
            f"checkpoint.every_steps={num_steps}",
            *overrides,
        ]
    )
    rows = read_metrics(directory / name / "metrics.jsonl")[NUM_WARM_UP_STEPS:]
    return [{key: value for key in TIMES if (value := row[key]) is not None} for row in rows]


def _launch(overrides: Sequence[str]) -> None:
    """As a user would. Raises RunError with the run's last words when it fails or takes too long."""
    sets = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "cluster.launch", "--config", str(SHAPES_CONFIG), *sets]
    try:
        subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise RunError(
            f"the run ended with exit code {error.returncode}: {(error.stderr or error.stdout)[-2000:]}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RunError(f"the run did not end within {RUN_TIMEOUT_S:g} s") from error
