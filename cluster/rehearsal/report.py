"""A rehearsal for people: what was cut, and what each component took."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from statistics import mean

from cluster.actors.usage import Usage
from cluster.planning.memory import GIB
from cluster.rehearsal.cuts import Cut
from cluster.rehearsal.observing import TRAINING, Life
from configs.schema import RunConfig

Row = tuple[str, str, str]
_LAST_CHECKPOINT = "writing the last checkpoint"
_STARTING = "starting learner, rollout workers and rewards"
_RAY = "starting Redis and Ray"


def describe_cuts(config: RunConfig, layers: int, cuts: Sequence[Cut], memory: str | None) -> str:
    """Every field that was changed, what stays, and the memory that it will need."""
    lines = [
        f"  models        random weights, {layers} layers each, widths, picture size and vocabulary as they are"
        if config.model.path != "tiny-janus"
        else "  models        as they are: the tiny Janus needs no download"
    ]
    width = max((len(cut.field) for cut in cuts), default=0)
    lines += [f"  cut           {cut.field.ljust(width)}  {cut.before} → {cut.after}  ({cut.reason})" for cut in cuts]
    if memory is not None:
        lines.append(f"  memory        {memory}")
    return "\n".join(lines)


def describe_lives(config: RunConfig, materials_s: float | None, lives: Sequence[Life], failed: bool) -> str:
    """A table of the components with seconds and peak memory; of a rehearsal that failed, how far it came."""
    rows: list[Row] = [("", "seconds", "peak memory")]
    if materials_s is not None:
        rows.append(("random weights", f"{materials_s:.1f}", ""))
    if lives:
        rows += _first_life(config, lives[0])
    if len(lives) > 1 and lives[1].steps:
        rows.append(("resume", f"{_sum(lives[1], _RAY, _STARTING):.1f} until its step", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(["", *table, _verdict(lives, failed)])


def _verdict(lives: Sequence[Life], failed: bool) -> str:
    if not failed:
        steps = sum(len(life.steps) for life in lives)
        return (
            f"rehearsed: {steps} steps in {len(lives)} lives. Placement, rollout, rewards, learner, weight sync, "
            "checkpoint and resume work"
        )
    if not lives:
        return "the rehearsal FAILED before the run began; the first failure:"
    where = "in the resumed run" if len(lives) > 1 else "in the run"
    return f"the rehearsal FAILED {where}, while {lives[-1].stage or 'it began'}; the first failure:"


def _first_life(config: RunConfig, life: Life) -> Iterator[Row]:
    yield "Ray and Redis", _seconds(life, _RAY), ""
    learn, rolled = _mean(life, "time/learn_s"), _mean(life, "time/rollout_s")
    yield _component(life, f"learner (ZeRO {config.learner.zero_stage})", "learner", learn, "step")
    yield _component(life, f"rollout ({config.rollout.engine}, VQ decoder)", "rollout", rolled, "group")
    for reward in config.rewards:
        batch_ms = _mean(life, f"reward/{reward.name}/batch_ms")
        batch_s = None if batch_ms is None else batch_ms / 1000
        yield _component(life, f"reward {reward.name}", f"reward-{reward.name.replace(':', '.')}", batch_s, "batch")
    if (sync := _mean(life, "time/sync_s")) is not None:
        yield "weight sync", f"{sync:.1f} a version", ""
    if TRAINING in life.stages:
        yield "a step, all in all", f"{_mean(life, 'time/step_s') or 0.0:.1f}", ""
    if _LAST_CHECKPOINT in life.stages:
        yield "checkpoint", _seconds(life, _LAST_CHECKPOINT), ""


def _component(life: Life, name: str, role: str, work_s: float | None, unit: str) -> Row:
    """Of all actors of a role: the longest start, the mean work, the most memory that one of them took."""
    usages = [
        usage for actor, usage in life.usages.items() if re.fullmatch(rf"{re.escape(role)}(-life\d+)?-\d+", actor)
    ]
    if not usages:
        return name, "not seen", ""
    if any(usage.start_s is None for usage in usages):
        return name, "did not start", _memory(usages)
    start_s = max(usage.start_s or 0.0 for usage in usages)
    work = "" if work_s is None else f", {work_s:.1f} a {unit}"
    return name, f"{start_s:.1f} to start{work}", _memory(usages)


def _memory(usages: Sequence[Usage]) -> str:
    host, device = max(usage.peak_bytes for usage in usages), max(usage.peak_gpu_bytes for usage in usages)
    text = f"{host / GIB:.1f} GiB"
    return f"{text}, GPU {device / GIB:.1f} GiB" if device else text


def _mean(life: Life, key: str) -> float | None:
    values = [step[key] for step in life.steps if not math.isnan(step.get(key, math.nan))]
    return mean(values) if values else None


def _sum(life: Life, *stages: str) -> float:
    return sum(life.stages.get(stage, 0.0) for stage in stages)


def _seconds(life: Life, stage: str) -> str:
    return f"{life.stages[stage]:.1f}" if stage in life.stages else "not reached"
