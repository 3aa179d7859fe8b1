"""What a study found: a markdown table of means and spreads over seeds, and the curves of every arm."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray

from cluster.reports.curves import PALETTE, moving_mean
from cluster.studies.runs import Outcome, Study

EVALUATIONS = ("heldout", "unseen_pairs")


def markdown(name: str, study: Study, outcomes: Sequence[Outcome], command: str) -> str:
    """The study as a section of a markdown page. An arm without a run is left out."""
    seeds = sorted({outcome.seed for outcome in outcomes})
    header = ["", *(evaluation.replace("_", " ") for evaluation in EVALUATIONS)]
    header += ["training, last tenth", *(f"`{key}`" for key in study.columns)]
    lines = [f"### Study `{name}`", "", study.question, "", f"`{command}`", ""]
    lines += [
        f"Seeds {', '.join(map(str, seeds))}; {len(outcomes[0].rows)} steps a run. Change of the mean reward from "
        "before to after training on prompts never trained on: mean over seeds (95 % interval of the mean, by "
        "Student's t). Where the last tenth of the steps stood: mean over seeds ± standard deviation.",
        "",
        _row(header),
        _row(["---"] * len(header)),
    ]
    for arm in study.arms:
        runs = [outcome for outcome in outcomes if outcome.arm == arm.name]
        if runs:
            lines.append(_row([arm.name, *_cells(study, runs)]))
    return "\n".join(lines) + "\n"


def draw(path: Path, study: Study, outcomes: Sequence[Outcome]) -> None:
    """Mean over seeds by step, one line an arm, with the range of the seeds as a band."""
    import matplotlib
    from matplotlib.figure import Figure

    keys = ("reward/mean", *study.curves)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.2 * len(keys), 3.8), dpi=130, layout="constrained")
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
            for arm, color in zip(study.arms, PALETTE, strict=False):
                runs = [outcome for outcome in outcomes if outcome.arm == arm.name]
                curves = np.array([_curve(outcome, key) for outcome in runs])
                if not np.isfinite(curves).any():
                    continue
                steps = np.arange(1, curves.shape[1] + 1)
                axes.plot(steps, np.nanmean(curves, axis=0), color=color, linewidth=1.8, label=arm.name)
                axes.fill_between(
                    steps, np.nanmin(curves, axis=0), np.nanmax(curves, axis=0), color=color, alpha=0.15, linewidth=0
                )
            axes.set_title(key, loc="left", fontweight="bold")
            axes.set_xlabel("optimizer step")
            axes.grid(color="#E6E6E6")
        figure.axes[0].legend(frameon=False)
        temporary = path.with_name(path.name + ".tmp")
        figure.savefig(temporary, format="png")
    os.replace(temporary, path)


def _cells(study: Study, runs: Sequence[Outcome]) -> list[str]:
    cells = [_interval([outcome.change(evaluation) for outcome in runs]) for evaluation in EVALUATIONS]
    return cells + [_spread([outcome.late_mean(key) for outcome in runs]) for key in ("reward/mean", *study.columns)]


def _curve(outcome: Outcome, key: str) -> NDArray[np.float64]:
    """float64 [steps], smoothed; NaN where there is no value."""
    values = [row.get(key) for row in outcome.rows]
    column = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return moving_mean(column, 2 * max(1, len(column) // 20) + 1)


def _interval(changes: Sequence[float]) -> str:
    """Mean over seeds with its 95 % interval, which one seed does not have."""
    text = f"{mean(changes):+.3f}"
    if len(changes) < 2:
        return text
    from scipy.stats import t

    half = float(t.ppf(0.975, len(changes) - 1)) * stdev(changes) / math.sqrt(len(changes))
    return f"{text} ({mean(changes) - half:+.3f} to {mean(changes) + half:+.3f})"


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds that have a value; a dash where none has, as for a phase that does
    not train."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "—"
    text = f"{mean(known):.3g}"
    return text if len(known) < 2 else f"{text} ± {stdev(known):.2g}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
