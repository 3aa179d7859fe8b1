"""The whole of training, end to end: T2I-R1's way against bicot's, with the same config, model and learner.

T2I-R1's way   for each prompt: transformers' loop writes and draws its group ─► rewards, a picture at a time
               ─► after the last one a step of the learner; one process, nothing overlaps
bicot          cluster.launch: vLLM on all groups at once, a reward pool, the learner beside them
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from cluster.benchmarks.isolation import isolated
from cluster.benchmarks.learner.speed import unlimited_parity
from cluster.benchmarks.models import make_model, shapes_config
from cluster.benchmarks.overlap import NUM_WARM_UP_STEPS, run_steps
from cluster.benchmarks.pipeline.sequential import SequentialTraining, StepTimes
from cluster.benchmarks.report import Scope, Table, spread
from configs.schema import TinyJanusConfig
from rollout.shapes import load_split

THREADS = (1, 2)
"""That T2I-R1's way is given in turn: bicot's processes that compute are two, with one each."""


def measure(scope: Scope) -> list[Table]:
    """Runs of a few steps, one after the other."""
    num_steps = scope.pick(quick=4, full=20)
    with tempfile.TemporaryDirectory(prefix="bicot-bench-", ignore_cleanup_errors=True) as directory:
        folder, size = make_model(Path(directory), "tiny", TinyJanusConfig())
        # In a process of its own each: a learner's process group is the process's.
        sequential = {threads: isolated(threads, run_sequential, folder, threads, num_steps) for threads in THREADS}
        steps = run_steps(Path(directory), "pipeline", folder, [], num_steps)
        num_pictures = shapes_config(folder).algorithm.trajectories_per_step
    ours = [row["time/step_s"] for row in steps]
    rows = []
    for threads, times in sequential.items():
        parts = (spread([getattr(one, part) for one in times]) for part in ("drawing", "scoring", "learning"))
        totals = [one.total for one in times]
        name = f"T2I-R1's way, {threads} thread{'s' if threads > 1 else ''}"
        rows.append((name, *_rate(totals, num_pictures), *parts, f"{median(totals) / median(ours):.3g} ×"))
    learning = spread([row["time/learn_s"] for row in steps])
    rows.append(("bicot", *_rate(ours, num_pictures), "beside it", "beside it", learning, ""))
    return [
        Table(
            "Pipeline: training end to end, T2I-R1's way against bicot's",
            f"`configs/shapes_cpu.yaml` as shipped, {num_pictures} pictures a step, {num_steps} steps, the first "
            f"{NUM_WARM_UP_STEPS} left out; a random policy of {size}. T2I-R1's way: transformers' loop on one group "
            "after the other, the reward on one picture after the other, then the same learner, in one process. "
            "bicot: `cluster.launch`, one thread for drawing and one for learning. Seconds, medians over steps.",
            ("", "pictures a second", "a step", "drawing", "scoring", "learning", "bicot / this"),
            tuple(rows),
        )
    ]


def run_sequential(folder: str, num_threads: int, num_steps: int, overrides: Sequence[str] = ()) -> list[StepTimes]:
    """Times of the steps that count, by T2I-R1's way."""
    torch.manual_seed(0)
    config = shapes_config(
        folder,
        [
            f"run.steps={num_steps}",
            f"learner.threads_per_rank={num_threads}",
            "algorithm.old_logprobs=recompute",
            *unlimited_parity(),  # there is nothing recorded to be compared
            *overrides,
        ],
    )
    training = SequentialTraining(folder, config)
    groups = config.algorithm.groups_per_step
    prompts = load_split("train", groups * num_steps)
    times = [training.step(number, prompts[number * groups : (number + 1) * groups]) for number in range(num_steps)]
    training.learner.close()
    return times[NUM_WARM_UP_STEPS:]


def _rate(step_s: Sequence[float], num_pictures: int) -> tuple[str, str]:
    return spread([num_pictures / one for one in step_s]), spread(step_s)
