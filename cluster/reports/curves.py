"""curves.png: how a run went, drawn from its metrics as six small charts over the steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.reports.metrics import MetricsRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]

PALETTE: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's: told apart by colour-blind readers and in print."""
BLUE, ORANGE, GREEN, PURPLE = PALETTE[:4]
GREY = "#999999"
_EVALUATION_COLORS: Final = (GREEN, PURPLE, ORANGE)
_STYLE: Final[dict[str, Any]] = {
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True, slots=True)
class EvaluationPoint:
    """Mean reward of one evaluation set under the weights after `step` optimizer steps."""

    name: str
    step: int
    reward: float


def draw_curves(rows: Sequence[MetricsRow], curves_path: Path, evaluations: Sequence[EvaluationPoint] = ()) -> None:
    """Draw the run's metrics to a PNG; takes about a second, so call it from a thread while a loop runs.

    What was not measured is said to be so.
    """
    import matplotlib  # here: it takes a third of a second, and only those who draw need it
    from matplotlib.figure import Figure

    steps = _column(rows, "step")
    style = _STYLE if len(rows) > 5 else {**_STYLE, "lines.marker": "."}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(12.0, 6.4), dpi=130, layout="constrained")
        (reward, kl, entropy), (staleness, speed, times) = figure.subplots(2, 3)
        _draw_reward(reward, steps, rows, [*evaluations, *evaluations_during(rows)])
        _draw_lines(kl, steps, rows, "KL to the reference policy", "nats a token", _keys(rows, "kl"))
        _draw_lines(entropy, steps, rows, "Entropy of the policy", "nats a token", _keys(rows, "entropy"))
        _draw_staleness(staleness, steps, rows)
        _draw_lines(speed, steps, rows, "Speed", "images a second", ["images_per_s"])
        _draw_times(times, steps, rows)
        for axes in (reward, kl, entropy, staleness, speed, times):
            axes.set_xlabel("optimizer step")
            axes.set_xlim(0, max([1.0, *steps]) * 1.02)
        temporary = curves_path.with_name(curves_path.name + ".tmp")
        figure.savefig(temporary, format="png")
    os.replace(temporary, curves_path)


def evaluations_during(rows: Sequence[MetricsRow]) -> list[EvaluationPoint]:
    """What was evaluated between the steps: the keys `evaluation/NAME`."""
    return [
        EvaluationPoint(key.partition("/")[2], int(row["step"] or 0), value)
        for row in rows
        for key, value in row.items()
        if key.startswith("evaluation/") and key.count("/") == 1 and value is not None
    ]


def moving_mean(values: FloatArray, width: int) -> FloatArray:
    """float64 [N] -> [N]: mean of the finite values among the `width` (odd) around each place, fewer at the ends."""
    finite = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="full")
    count = np.convolve(finite.astype(np.float64), kernel, mode="full")
    half = width // 2
    with np.errstate(invalid="ignore"):
        mean: FloatArray = (total / count)[half : half + len(values)]
    return mean


def _draw_reward(
    axes: Axes, steps: FloatArray, rows: Sequence[MetricsRow], evaluations: Sequence[EvaluationPoint]
) -> None:
    axes.set_title("Reward")
    axes.set_ylabel("combined reward")
    rewards = _column(rows, "reward/mean")
    if not np.isfinite(rewards).any() and not evaluations:
        return _say_not_measured(axes)
    axes.plot(steps, rewards, color=BLUE, alpha=0.3, linewidth=1, label="training, each step")
    width = 2 * max(1, len(rows) // 20) + 1
    axes.plot(steps, moving_mean(rewards, width), color=BLUE, linewidth=2, label=f"training, mean of {width}")
    names = list(dict.fromkeys(point.name for point in evaluations))
    for index, name in enumerate(names):
        points = sorted((point.step, point.reward) for point in evaluations if point.name == name)
        axes.plot(
            *zip(*points, strict=True),
            color=_EVALUATION_COLORS[index % len(_EVALUATION_COLORS)],
            marker="os^D"[index % 4],
            linestyle="--",
            linewidth=1,
            clip_on=False,
            label=f"{name.replace('_', ' ')}, {points[0][1]:.2f} → {points[-1][1]:.2f}",
        )
    axes.legend(loc="best")


def _draw_lines(
    axes: Axes, steps: FloatArray, rows: Sequence[MetricsRow], title: str, unit: str, keys: Sequence[str]
) -> None:
    """Keys of one quantity that is never below 0, one line each."""
    axes.set_title(title)
    axes.set_ylabel(unit)
    columns = {key: column for key in keys if np.isfinite(column := _column(rows, key)).any()}
    if not columns:
        return _say_not_measured(axes)
    for color, (key, column) in zip((BLUE, ORANGE, GREEN, PURPLE), columns.items(), strict=False):
        part = key.partition("/")[2]
        axes.plot(steps, column, color=color, linewidth=1.4, label=_PARTS.get(part, part or "all tokens"))
    if len(columns) > 1:
        axes.legend(loc="best")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)


_PARTS: Final = {"cot": "semantic CoT", "image": "image tokens"}


def _draw_staleness(axes: Axes, steps: FloatArray, rows: Sequence[MetricsRow]) -> None:
    axes.set_title("Staleness")
    axes.set_ylabel("weight versions")
    mean, largest = _column(rows, "staleness/mean"), _column(rows, "staleness/max")
    if not np.isfinite(largest).any():
        return _say_not_measured(axes)
    axes.step(steps, largest, where="mid", color=GREY, linewidth=1.2, label="largest")
    axes.plot(steps, mean, color=BLUE, linewidth=1.4, label="mean")
    axes.set_ylim(0, max(1.0, float(np.nanmax(largest))) * 1.15)
    axes.yaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # MaxNLocator's
    axes.legend(loc="best")


def _draw_times(axes: Axes, steps: FloatArray, rows: Sequence[MetricsRow]) -> None:
    """Wait, learn and sync add up to the step; a group's rollout and rewards overlap with them."""
    axes.set_title("Where a step's time goes")
    axes.set_ylabel("seconds")
    parts = {name: _column(rows, f"time/{name}_s") for name in ("learn", "wait", "sync")}
    if not any(np.isfinite(part).any() for part in parts.values()):
        return _say_not_measured(axes)
    labels = {"learn": "learning", "wait": "waiting for groups", "sync": "weight sync"}
    axes.stackplot(
        steps,
        *(np.nan_to_num(part) for part in parts.values()),
        labels=[labels[name] for name in parts],
        colors=(BLUE, GREY, ORANGE),
        alpha=0.6,
        linewidth=0,
    )
    for name, color, label in (("rollout", GREEN, "rollout of a group"), ("reward", PURPLE, "rewards of a group")):
        column = _column(rows, f"time/{name}_s")
        if np.isfinite(column).any():
            axes.plot(steps, column, color=color, linewidth=1.4, label=label)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the legend
    axes.legend(loc="upper left", ncols=2)


def _say_not_measured(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_yticks([])


def _column(rows: Sequence[MetricsRow], key: str) -> FloatArray:
    """float64 [N]; NaN where a row has no such value."""
    values = [row.get(key) for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _keys(rows: Sequence[MetricsRow], name: str) -> list[str]:
    """`name` and `name/…`, of all that occur."""
    found = {key for row in rows for key in row if key == name or key.startswith(name + "/")}
    return sorted(found)
