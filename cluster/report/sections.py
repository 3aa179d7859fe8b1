"""What each section of report and page shows, as plain values for the templates. Pure functions of the runs."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from cluster.report.view import STALE_AFTER_S, Moment, RunView, fields_of, shown
from cluster.reports.metrics import critical_path_of
from cluster.reports.progress import format_duration
from configs.schema import RunConfig
from configs.worker_sections import PoolSize

PHASE_ORDER: Final = (
    *("learning", "waiting", "syncing", "evaluating", "reporting", "starting", "checkpointing", "restarting"),
    "finishing",
)
_HEALTH: Final = ("std_in_group", "no_spread", "at_max", "perfect", "queue_ms", "batch_ms", "images_per_s")
FAULTS: Final = re.compile(
    r"died|lost|fail|could not|cannot|again|given up|another prompt|DEAD|SUSPECT|silent|restart|damaged|replaced|"
    r"not written|no room",
)
"""What a line of the run's notes says that tells of a fault or of a recovery."""
MAX_MOMENTS: Final = 200
_ITEM: Final = re.compile(r"\[.*?\]")
_NONE: Final = object()


def verdict(view: RunView) -> list[dict[str, Any]]:
    """One tile an evaluation set, and one of training: reward before and after, full marks before and after."""
    summary = view.summary or {}
    tiles: list[dict[str, Any]] = []
    for name in view.evaluation_sets:
        before = summary.get(f"{name}_reward_before")
        after = summary.get(f"{name}_reward_after")
        if before is None:
            continue
        perfect = {
            reward: pair
            for reward, pair in (summary.get(f"{name}_perfect") or {}).items()
            if None not in pair.values() and max(pair.values()) > 0
        }
        tiles.append({"name": name.replace("_", " "), "before": before, "after": after, "perfect": perfect})
    rewards = [reward for reward in view.column("reward/mean") if reward is not None]
    if rewards:
        count = max(1, len(rewards) // 10)
        first, last = sum(rewards[:count]) / count, sum(rewards[-count:]) / count
        label = "training, first and last tenth of the steps"
        tiles.append({"name": label, "before": first, "after": last, "perfect": {}})
    return tiles


def facts(view: RunView) -> list[tuple[str, str]]:
    """A run in a few figures."""
    images = sum(row.get("images") or 0 for row in view.rows)
    seconds = (view.summary or {}).get("wall_s") or sum(row.get("time/step_s") or 0 for row in view.rows)
    told = [
        ("steps", f"{view.step:,} of {view.steps:,}"),
        ("pictures learned from", f"{images:,.0f}"),
        ("training time", format_duration(seconds)),
        ("pictures a second", f"{images / seconds:.2f}" if seconds else "–"),
        ("model", str(view.config.get("model.path", "–"))),
        ("group size", str(view.config.get("algorithm.group_size", "–"))),
        ("groups a step", str(view.config.get("algorithm.groups_per_step", "–"))),
    ]
    if slowest := (view.summary or {}).get("slowest_reward"):
        told.append(("slowest reward", f"{slowest['name']}, {slowest['images_per_s']:.1f} pictures/s a replica"))
    if path := critical_path_of(view.rows):
        told.append(("time went to", path.describe()))
    return told


def reward_table(view: RunView) -> list[dict[str, Any]]:
    """One row a reward: each evaluation set before and after, and how the signal is at the last step."""
    summary, rows = view.summary or {}, []
    for name in view.rewards:
        sets = []
        for evaluation in view.evaluation_sets:
            pair = (summary.get(f"{evaluation}_rewards") or {}).get(name) or {}
            during = view.last(f"evaluation/{evaluation}/{name}")
            after = pair.get("after") if pair.get("after") is not None else during
            before = pair.get("before")
            if before is None and during is not None:
                before = during - (view.last(f"evaluation/{evaluation}/{name}/change") or 0.0)
            drift = after - before if after is not None and before is not None else None
            sets.append({"name": evaluation.replace("_", " "), "before": before, "after": after, "drift": drift})
        key = f"reward/{name}"
        values = [value for value in view.column(key) if value is not None]
        rows.append(
            {
                "name": name,
                "sets": sets,
                "first": values[0] if values else None,
                "last": values[-1] if values else None,
                **{column: view.last(f"{key}/{column}") for column in _HEALTH},
                "failed": sum(value or 0 for value in view.column(f"{key}/failed")),
            }
        )
    return rows


def correlations(view: RunView) -> list[tuple[str, list[float | None]]]:
    """Rows of the matrix of rewards: Pearson's r within groups, mean over the last tenth of the steps."""
    names = view.rewards
    if len(names) < 2:
        return []
    found: dict[frozenset[str], float] = {}
    for key in view.keys("reward_correlation/"):
        values = [value for value in view.column(key) if value is not None]
        if values:
            last = values[-max(1, len(values) // 10) :]
            found[frozenset(key.partition("/")[2].split("~"))] = sum(last) / len(last)
    return [(one, [1.0 if one == other else found.get(frozenset((one, other))) for other in names]) for one in names]


def time_split(view: RunView) -> list[dict[str, Any]]:
    """What the run was at: seconds and share; by the timeline, else by the steps' own times."""
    phases = dict(view.phases)
    if not phases:
        for phase, part in (("learning", "learn"), ("waiting", "wait"), ("syncing", "sync")):
            phases[phase] = sum(row.get(f"time/{part}_s") or 0.0 for row in view.rows)
    total = sum(phases.values())
    return [
        {
            "name": name,
            "seconds": phases[name],
            "text": format_duration(phases[name]),
            "share": phases[name] / total,
            "color": number,
        }
        for number, name in enumerate(PHASE_ORDER)
        if total and phases.get(name, 0.0) > 0
    ]


def fault_counts(view: RunView) -> list[tuple[str, int]]:
    """What went wrong, in numbers; zeros too, since they are worth knowing."""
    lost = sum(" DEAD" in moment.text for moment in view.moments)
    left = sum(" DRAINING" in moment.text for moment in view.moments)
    return [
        ("attempts at a group that failed", int(view.last("groups_failed") or 0)),
        ("prompts given up", int(view.last("groups_given_up") or 0)),
        ("pictures left out", int(view.last("images_left_out") or 0)),
        ("optimizer updates skipped", int(view.last("skipped_steps") or 0)),
        ("checkpoints that failed", int(view.last("checkpoints_failed") or 0)),
        ("workers lost", max(0, lost - left)),
        ("learner restarts", sum(moment.text.find("; restart ") >= 0 for moment in view.moments)),
    ]


def faults(view: RunView) -> list[dict[str, str]]:
    """The lines that tell of faults and recoveries, with the time since the run began."""
    return _told([moment for moment in view.moments if FAULTS.search(moment.text)], view)


def notes(view: RunView) -> list[dict[str, str]]:
    """The last lines that the run told, newest first."""
    live = view.live or {}
    moments = [Moment(note["at_s"], note["text"]) for note in live.get("notes", ())]
    return _told(moments, view)[::-1]


def _told(moments: Sequence[Moment], view: RunView) -> list[dict[str, str]]:
    began_s = view.moments[0].at_s if view.moments else (view.live or {}).get("began_s", math.nan)
    return [
        {"after": format_duration(moment.at_s - began_s) if math.isfinite(began_s) else "", "text": moment.text}
        for moment in moments[-MAX_MOMENTS:]
    ]


def now(view: RunView, at_s: float | None = None) -> dict[str, Any] | None:
    """What a run that lives is at; None of one that has ended, or that tells nothing."""
    live = view.live
    if live is None or not view.is_running:
        return None
    at_s = time.time() if at_s is None else at_s
    waiting = [state for state in live["next_step"].values() if state not in ("queued", "trained")]
    step_s = view.last("time/step_s")
    left = view.steps - view.step
    return {
        "phase": live["phase"],
        "since": format_duration(at_s - live["phase_since_s"]),
        "last_step": format_duration(at_s - live["last_step_s"]),
        "left": format_duration(left * step_s) if step_s else "–",
        "is_silent": at_s - live["updated_s"] > STALE_AFTER_S,
        "silent_for": format_duration(at_s - live["updated_s"]),
        "waits_for": _waits_for(live, waiting),
        "pools": live["pools"],
        "groups": live["groups"],
        "under_way": {what: count for what, count in live["under_way"].items() if count},
    }


def _waits_for(live: Mapping[str, Any], waiting: Sequence[str]) -> str:
    step, total = live["step"] + 1, len(live["next_step"])
    if live["phase"] != "waiting":
        return f"the run is {live['phase']}"
    if not waiting:
        return f"all groups of step {step} are there"
    states = {state: waiting.count(state) for state in dict.fromkeys(waiting)}
    parts = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in states.items())
    return f"step {step} waits for {len(waiting)} of its {total} groups: {parts}"


def pairs(view: RunView) -> list[dict[str, Any]]:
    """Of each evaluation set: the same prompts drawn before and after training, most improved first."""
    sets = []
    for name, tree in view.before_after.items():
        entries, count = tree["entries"], tree["num_before"]
        both = [
            {"before": before, "after": after, "change": (after["score"] or 0) - (before["score"] or 0)}
            for before, after in zip(entries[:count], entries[count:], strict=False)
        ]
        words = name.replace("_", " ")
        sets.append({"name": words, "title": str(tree.get("title", "")).replace(name, words, 1), "pairs": both})
    return sets


def versions(view: RunView) -> dict[str, str]:
    """Of what ran, as the run told them, and when it began."""
    live = view.live or {}
    told = {"began": _date(live["began_s"])} if "began_s" in live else {}
    return told | {str(name): str(version) for name, version in (live.get("versions") or {}).items()}


def from_defaults(view: RunView) -> list[tuple[str, str, str]]:
    """Fields of a config that differ from the schema's defaults: name, value, default."""
    found = []
    for name, value in fields_of(view).items():
        default = _default_of(_ITEM.sub("", name))
        if name.startswith("run.dir") or (default is not _NONE and shown(default) == shown(value)):
            continue
        found.append((name, shown(value), "–" if default is _NONE else shown(default)))
    return found


def _default_of(name: str) -> Any:
    section: Any = RunConfig
    *parents, last = name.split(".")
    for parent in parents:
        field = getattr(section, "model_fields", {}).get(parent)
        section = None if field is None else next(iter(_models(field.annotation)), None)
    field = getattr(section, "model_fields", {}).get(last)
    if field is None or field.is_required():
        return _NONE
    default = field.get_default(call_default_factory=True)
    if isinstance(default, PoolSize) and not default.is_elastic:
        return default.min
    return default.model_dump(mode="json") if hasattr(default, "model_dump") else default


def _models(annotation: Any) -> list[Any]:
    """The sections in `Section` and in `Section | None`."""
    return [kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields")]


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
