"""A run as its directory shows it: all that report and page are made of. Whatever is missing or broken is left out.

RUN/ ─► read_run ─► RunView ─► sections ─► page
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.reports.live import read_live
from cluster.reports.metrics import MetricsRow, read_metrics
from cluster.reports.sample_file import read_sample_file
from cluster.reports.timeline import RUN, read_timeline
from cluster.state import RunDirectory
from cluster.state.run_directory import read_summary
from configs.errors import ConfigError, DataError
from configs.local.masking import mask_text
from configs.yaml_text import parse_yaml

STALE_AFTER_S = 30.0
"""live.json of a run that lives is at most this old."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A line that the run told, or a worker's change of state."""

    at_s: float
    """Unix time."""
    text: str


@dataclass(frozen=True)
class RunView:
    """One run."""

    directory: RunDirectory
    name: str
    """Told apart from those of the other runs that are shown."""
    config: Mapping[str, Any]
    """Dotted field -> value."""
    config_text: str
    rows: Sequence[MetricsRow]
    summary: Mapping[str, Any] | None
    live: Mapping[str, Any] | None
    is_running: bool
    before_after: Mapping[str, Mapping[str, Any]]
    """Evaluation set -> sample file: `num_before` entries before training, and as many after."""
    sample_steps: Sequence[int]
    phases: Mapping[str, float]
    """What the run was at -> seconds in all."""
    moments: Sequence[Moment] = field(default_factory=tuple)

    @property
    def status(self) -> str:
        """running, finished, stopped, failed, or killed: it has ended without a word."""
        if self.summary is not None:
            return str(self.summary["status"])
        return "running" if self.is_running else "killed"

    @property
    def step(self) -> int:
        return int(self.rows[-1]["step"] or 0) if self.rows else 0

    @property
    def resume_command(self) -> str:
        """What goes on with it, where its own directory is; `directory` may be a copy of some of its files."""
        own = (self.live or {}).get("directory")
        return (self.directory if own is None else RunDirectory(Path(own))).resume_command

    @property
    def steps(self) -> int:
        """Those of the config."""
        return int(self.config.get("run.steps", 0))

    @cached_property
    def rewards(self) -> tuple[str, ...]:
        """Names of the rewards, in the config's order."""
        return tuple(str(reward["name"]) for reward in self.config.get("rewards", ()) if "name" in reward)

    @cached_property
    def evaluation_sets(self) -> tuple[str, ...]:
        """Names of the sets of prompts that are evaluated."""
        prefix = "data.evaluation."
        return tuple(key.removeprefix(prefix) for key in self.config if key.startswith(prefix))

    def samples(self, step: int) -> Mapping[str, Any] | None:
        """The sample file of a step; None when there is none."""
        return read_sample_file(self.directory.samples_path(step).with_suffix(".json"))

    def column(self, key: str) -> list[float | None]:
        """A metric of every step."""
        return [row.get(key) for row in self.rows]

    def last(self, key: str) -> float | None:
        """The last value of a metric that was measured."""
        return next((value for row in reversed(self.rows) if (value := row.get(key)) is not None), None)

    def keys(self, prefix: str) -> list[str]:
        """Metrics that begin so, in the order in which they came."""
        return list(dict.fromkeys(key for row in self.rows for key in row if key.startswith(prefix)))


def read_run(path: Path, name: str | None = None) -> RunView:
    """The run in a directory. Raises ConfigError when there is none."""
    directory = RunDirectory(path.expanduser().resolve())
    try:
        config_text = mask_text(directory.config_path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: there is no run here ({directory.config_path.name}: {error.strerror})") from error
    phases, moments = _read_timeline(directory.timeline_path)
    summary = read_summary(directory.summary_path)  # written at the end, and set aside when a run goes on
    live = read_live(directory.live_path)
    return RunView(
        directory=directory,
        name=name or directory.name,
        config=_flat(parse_yaml(config_text, str(directory.config_path))),
        config_text=config_text,
        rows=_rows(directory.metrics_path),
        summary=summary,
        live=live,
        is_running=summary is None and (directory.is_in_use() or _is_fresh(live)),
        before_after=_before_after(directory),
        sample_steps=_sample_steps(directory.samples_dir),
        phases=phases,
        moments=moments,
    )


def read_runs(paths: Sequence[Path]) -> list[RunView]:
    """Runs to be shown together: those of one name are told apart by their folders, or by a number."""
    views = [read_run(path) for path in paths]
    names = [view.name for view in views]
    if len(set(names)) == len(names):
        return views
    longer = [f"{view.directory.path.parent.name}/{view.name}" for view in views]
    if len(set(longer)) < len(longer):
        longer = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    return [read_run(path, name) for path, name in zip(paths, longer, strict=True)]


def _is_fresh(live: Mapping[str, Any] | None) -> bool:
    """Whether a launcher wrote it just now: what tells where another machine's lock cannot be seen."""
    return live is not None and time.time() - live.get("updated_s", 0.0) <= STALE_AFTER_S


def _rows(path: Path) -> Sequence[MetricsRow]:
    try:
        return read_metrics(path)
    except (OSError, DataError):
        return []


def _sample_steps(folder: Path) -> list[int]:
    steps = (path.stem.removeprefix("step_") for path in folder.glob("step_*.json"))
    return sorted(int(step) for step in steps if step.isdigit())


def _before_after(directory: RunDirectory) -> dict[str, Mapping[str, Any]]:
    found = {}
    for path in sorted(directory.samples_dir.glob("before_after_*.json")):
        if (tree := read_sample_file(path)) is not None and isinstance(tree.get("num_before"), int):
            found[path.stem.removeprefix("before_after_")] = tree
    return found


def _read_timeline(path: Path) -> tuple[dict[str, float], list[Moment]]:
    phases: dict[str, float] = {}
    moments: list[Moment] = []
    try:
        events = read_timeline(path)
    except OSError:
        return phases, moments
    for event in events:
        if event.get("pid") != RUN:
            continue
        if event["ph"] == "X":
            phases[event["name"]] = phases.get(event["name"], 0.0) + event["dur"] / 1e6
        elif event["ph"] == "i" and not event["name"].startswith("weight version"):
            text = event["args"].get("text") or event["name"]
            moments.append(Moment(event["ts"] / 1e6, str(text)))
    return phases, moments


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field -> value; lists stay whole."""
    if not isinstance(tree, Mapping):
        return {prefix.rstrip("."): tree}
    fields: dict[str, Any] = {}
    for key, value in tree.items():
        fields |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return fields


def fields_of(view: RunView) -> dict[str, Any]:
    """The config by field, also of each reward: `rewards[hps].weight`."""
    fields: dict[str, Any] = {}
    for name, value in view.config.items():
        fields[name] = value if name != "rewards" else ", ".join(view.rewards)
        if name == "rewards":
            for reward in value:
                fields |= _flat(
                    {key: own for key, own in reward.items() if key != "name"}, f"rewards[{reward['name']}]."
                )
    return fields


def config_differences(views: Sequence[RunView]) -> list[tuple[str, list[str]]]:
    """Fields of which the runs have different values, and each run's as text; where it writes does not count."""
    configs = [fields_of(view) for view in views]
    fields = dict.fromkeys(key for config in configs for key in config)
    found = []
    for name in fields:
        if name in ("run.name", "run.dir"):
            continue
        values = [shown(config[name]) if name in config else "–" for config in configs]
        if len(set(values)) > 1:
            found.append((name, values))
    return found


def shown(value: Any) -> str:
    """A value of a config as text."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
