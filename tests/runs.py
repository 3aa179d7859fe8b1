"""Run directories as a run leaves them, made without a run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.reports.metrics import RewardChange, RunSummary, write_summary
from cluster.reports.metrics_file import MetricsWriter
from cluster.reports.sample_file import write_sample_file
from cluster.reports.samples import SampleEntry
from cluster.reports.timeline import RUN, Timeline
from cluster.state import RunDirectory
from configs.load import load_config

REWARDS = ("shapes", "second")


def row(step: int) -> dict[str, float]:
    """The metrics of a step."""
    return {
        "step": step,
        "weight_version": step,
        "images": 8,
        "images_per_s": 4.0 + step % 3,
        "reward/mean": 0.4 + 0.01 * step,
        "reward/std_in_group": 0.2,
        "kl": 0.001 * step,
        "kl/cot": 0.002 * step,
        "entropy/cot": 0.5,
        "grad_norm": 0.3,
        "time/step_s": 2.0,
        "time/learn_s": 1.2,
        "time/wait_s": 0.7,
        "time/sync_s": 0.1,
        "staleness/mean": 0.5,
        "groups_failed": 1,
        **{f"reward/{name}": 0.3 + 0.01 * step * (-1) ** place for place, name in enumerate(REWARDS)},
        **{f"reward/{name}/std_in_group": 0.1 for name in REWARDS},
        "reward_correlation/shapes~second": -0.4,
    }


def entries(count: int, seed: int, score: float) -> list[SampleEntry]:
    """Pictures of 64 pixels; the first prompt is hostile."""
    rng = np.random.default_rng(seed)
    texts = ["<script>alert(1)</script> & a star", *(f"a red star, number {number}" for number in range(1, count))]
    return [
        SampleEntry(
            rng.integers(0, 256, (64, 64, 3), np.uint8),
            text,
            f"a plan of {number}",
            min(1.0, score + 0.1 * number),
            f"found a star in picture {number}",
            {"shapes": score, "second": 1 - score},
        )
        for number, text in enumerate(texts)
    ]


def add_step(directory: RunDirectory, step: int) -> None:
    """What a run adds to its directory when a step is made that has samples."""
    with MetricsWriter(directory.metrics_path) as metrics:
        metrics.write(row(step))
    file = directory.samples_path(step).with_suffix(".json")
    write_sample_file(file, f"step {step}", entries(4, step, 0.3), step=step)


def live_tree(step: int) -> dict[str, Any]:
    """What live.json holds of a run that waits for its next step with one worker."""
    now = time.time()
    worker = {"id": "rollout-0", "state": "READY", "calls": 1, "node": "abcdef01", "version": step}
    return {
        "updated_s": now,
        "began_s": now - 60.0,
        "versions": {"python": "3.11"},
        "phase": "waiting",
        "phase_since_s": now - 1.0,
        "step": step,
        "last_step_s": now - 1.0,
        "pools": [{"name": "rollout", "size": 1, "calls": 1, "waiting": 0, "lost": 0, "workers": [worker]}],
        "groups": {"dispatched": 1, "trained": 2 * step},
        "under_way": {"rollout and rewards": 1},
        "next_step": {"24": "dispatched", "25": "queued"},
        "notes": [{"at_s": now, "step": step, "text": f"step {step} was made"}],
    }


def make_run(folder: Path, name: str = "trial", steps: int = 12, overrides: Sequence[str] = ()) -> RunDirectory:
    """The directory of a run that was killed after so many steps; its last step has samples."""
    two = [{"name": REWARDS[0]}, {"name": REWARDS[1], "kind": "shapes", "weight": 0.5}]
    config = load_config(
        "configs/shapes_cpu.yaml",
        [f"run.dir={folder}", f"run.name={name}", "run.steps=40", f"rewards={json.dumps(two)}", *overrides],
    )
    directory = RunDirectory.create(config)
    with MetricsWriter(directory.metrics_path) as metrics:
        for step in range(1, steps):
            metrics.write(row(step))
    add_step(directory, steps)
    timeline = Timeline(directory.timeline_path)
    timeline.span(RUN, "run", "starting", 100.0, 160.0)
    timeline.span(RUN, "run", "learning", 160.0, 400.0)
    timeline.moment(RUN, "note", 170.0, text="rollout-0 died: out of memory; starting another in its place")
    timeline.moment(RUN, "rollout-0 DEAD", 170.0)
    timeline.moment(RUN, "note", 180.0, text="heldout after step 8: reward 0.600 on 24 prompts")
    timeline.flush()
    return directory


def finish(directory: RunDirectory, steps: int = 12) -> None:
    """Add what a run leaves at its end."""
    columns = {"shapes": (0.3, 0.5), "second": (0.4, 0.2)}
    change = RewardChange(0.42, 0.71, columns, {"shapes": (0.08, 0.33)}, 24)
    summary = RunSummary("finished", steps, 96, 24.0, 4.0, {"heldout": change}, 0.41, 0.5, "checkpoints/step/model")
    write_summary(directory.summary_path, summary)
    both = [*entries(3, 1, 0.2), *entries(3, 2, 0.6)]
    write_sample_file(directory.samples_dir / "before_after_heldout.json", "heldout, 24 prompts", both, num_before=3)
