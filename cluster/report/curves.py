"""The charts of report and page: which metrics they show, of one run or of several over each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from cluster.report.charts import Chart, Line
from cluster.report.view import RunView
from cluster.reports.curves import evaluations_during, moving_mean

MEMORY: Final = ("launcher", "rollout", "learner", "rewards")
PARTS: Final = {"": "all tokens", "cot": "semantic CoT", "image": "image tokens"}


def charts_of(views: Sequence[RunView]) -> list[Chart]:
    """All charts that have something to show."""
    charts = [
        Chart("Reward", "combined reward", list(_reward(views)),
              meaning="mean of the step's pictures; dots: evaluation"),
        _simple(views, "KL to the reference", "nats a token", ("kl", "kl/cot", "kl/image"), from_zero=True),
        _simple(views, "Entropy of the policy", "nats a token", ("entropy/cot", "entropy/image"), from_zero=True),
        _simple(views, "Spread of the reward", "standard deviation", ("reward/std_in_group",), from_zero=True,
                meaning="within a group, mean over groups: what the advantages are made of"),
        _simple(views, "Gradient norm", "L2, before clipping", ("grad_norm",), from_zero=True),
        _simple(views, "Ratio", "learner / sampler", ("ratio/min", "ratio/mean", "ratio/max"),
                meaning="probability of a token under the learner over that when it was sampled"),
        _simple(views, "Parity of engine and learner", "nats a token",
                ("parity/mean_abs/cot", "parity/mean_abs/image"), from_zero=True, look="dots",
                meaning="mean difference under the same weights, at steps that compare"),
        _simple(views, "Length of the semantic CoT", "tokens", ("cot_length",), from_zero=True),
        _simple(views, "Speed", "pictures a second", ("images_per_s",), from_zero=True),
        *(_times(view, len(views) > 1) for view in views),
        _simple(views, "Stages at work", "share of the time",
                ("pipeline_efficiency", "busy/rollout", "busy/rewards", "busy/learner"), from_zero=True,
                meaning="the greatest is the pipeline's efficiency: 1 when the slowest stage never waits"),
        _simple(views, "A group's way", "seconds", ("time/rollout_s", "time/reward_s"), from_zero=True,
                meaning="mean time of a group's rollout, and from its end to the last score"),
        _simple(views, "Memory", "GB", tuple(f"memory/{process}_gb" for process in MEMORY), from_zero=True,
                labels=MEMORY, meaning="what processes hold each for itself; of workers and ranks the largest"),
        _simple(views, "Staleness", "weight versions", ("staleness/mean", "staleness/max"), from_zero=True),
    ]  # fmt: skip
    return [chart for chart in charts if not chart.is_empty]


def reward_charts(views: Sequence[RunView]) -> list[Chart]:
    """One a reward: its mean, and its spread within a group. Only where there are several rewards."""
    names = list(dict.fromkeys(name for view in views for name in view.rewards))
    if len(names) < 2:
        return []
    charts = [
        _simple(views, name, "score", (f"reward/{name}", f"reward/{name}/std_in_group"), labels=("mean", "spread"))
        for name in names
    ]
    return [chart for chart in charts if not chart.is_empty]


def _simple(
    views: Sequence[RunView],
    title: str,
    unit: str,
    keys: Sequence[str],
    *,
    from_zero: bool = False,
    look: str = "",
    meaning: str = "",
    labels: Sequence[str] = (),
) -> Chart:
    lines = []
    for view_number, view in enumerate(views):
        for number, key in enumerate(keys):
            label = labels[number] if labels else _label(key, keys)
            if len(views) > 1:
                label = f"{view.name} {label}" if len(keys) > 1 else view.name
            color = number if len(views) == 1 else view_number
            dashed = "dashed" if len(views) > 1 and number else ""
            lines.append(Line(label, _steps(view), view.column(key), color, f"{look} {dashed}".strip()))
    return Chart(title, unit, lines, from_zero=from_zero, meaning=meaning)


def _label(key: str, keys: Sequence[str]) -> str:
    if len(keys) == 1:
        return ""
    part = key.rpartition("/")[2] if "/" in key else ""
    if not part and not any(other.startswith(f"{key}/") for other in keys):
        return key.replace("_", " ")
    if key.startswith("time/"):
        return part.removesuffix("_s")
    return PARTS.get(part, part)


def _reward(views: Sequence[RunView]) -> Iterator[Line]:
    for number, view in enumerate(views):
        steps, rewards = _steps(view), view.column("reward/mean")
        prefix = f"{view.name} " if len(views) > 1 else ""
        yield Line("each step", steps, rewards, number, "faint")
        values = np.array([np.nan if reward is None else reward for reward in rewards], np.float64)
        width = 2 * max(1, len(values) // 20) + 1
        smooth = moving_mean(values, width) if len(values) else values
        yield Line(f"{prefix}training, mean of {width}", steps, smooth.tolist(), number)
        for index, name in enumerate(view.evaluation_sets):
            color = 2 + index if len(views) == 1 else number
            points = _evaluated(view, name)
            label = f"{prefix}{name.replace('_', ' ')}"
            yield Line(label, [step for step, _ in points], [value for _, value in points], color, "dots dashed")


def _evaluated(view: RunView, name: str) -> list[tuple[int, float]]:
    """Steps and mean rewards of an evaluation set: before, during and after training."""
    points = {point.step: point.reward for point in evaluations_during(view.rows) if point.name == name}
    summary = view.summary or {}
    if (before := summary.get(f"{name}_reward_before")) is not None:
        points[0] = before
    if (after := summary.get(f"{name}_reward_after")) is not None:
        points[view.step] = after
    return sorted(points.items())


def _times(view: RunView, with_name: bool) -> Chart:
    parts = {"learn": "learning", "wait": "waiting for groups", "sync": "weight sync"}
    lines = [
        Line(label, _steps(view), view.column(f"time/{part}_s"), number)
        for number, (part, label) in enumerate(parts.items())
    ]
    title = f"A step's time, {view.name}" if with_name else "A step's time"
    return Chart(title, "seconds", lines, from_zero=True, is_stacked=True)


def _steps(view: RunView) -> list[float]:
    return [float(row["step"] or 0) for row in view.rows]
