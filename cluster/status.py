"""How a run is doing: what its registry and its run directory say.

    python -m cluster.status runs/shapes_cpu                 the run in a directory; also --watch, --json
    python -m cluster.status NAME --redis redis://host:6379  a run by its name alone, from any machine

A private Redis listens on its own machine only, so without --redis this must run where the launcher does.

Exit codes: 0 the run is there; 1 the registry does not answer; 2 there is no such run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.session.private_redis import ADDRESS_NAME
from cluster.state import Registry, RunDirectory
from cluster.state.ledger import GroupState, Value
from cluster.state.registry import RunSnapshot
from cluster.state.run_directory import read_summary
from configs.command_line import exit_code_of
from configs.errors import ConfigError, RegistryError
from configs.load import load_config
from configs.local.environment import REDIS_URL_VARIABLE, with_secrets
from configs.local.masking import MASK

WATCH_EVERY_S = 2.0
NUM_LISTED = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is looked up."""

    name: str
    key: str
    """Under which the registry has it."""
    directory: RunDirectory | None
    redis_url: str | None
    """None: its registry has ended with it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code_of(partial(_show, options), "the run goes on")


def _show(options: argparse.Namespace) -> int:
    place = find_run(options.run, options.redis)
    while True:
        print(asyncio.run(report(place, as_json=options.json)), flush=True)
        if not options.watch or place.redis_url is None:
            return 0
        time.sleep(WATCH_EVERY_S)


def find_run(run: str, redis_url: str | None) -> Place:
    """The registry of a run directory, or of a name. Raises ConfigError when there is no such run."""
    redis_url = redis_url or os.environ.get(REDIS_URL_VARIABLE)
    path = Path(run).expanduser()
    if not path.is_dir():
        if redis_url is None or os.sep in run:
            raise ConfigError(f"'{run}' is no run directory; name one, or give a name with --redis URL")
        return Place(run, asyncio.run(Registry.newest_key_of(redis_url, run)), None, redis_url)
    directory = RunDirectory.open(path)
    address = directory.redis_dir / ADDRESS_NAME
    configured = with_secrets(load_config(directory.config_path)).registry.redis_url
    if redis_url is None and configured is not None:
        if MASK in configured:
            raise ConfigError(
                f"{directory.config_path}: the password of registry.redis_url was not written down; give the whole "
                f"address by --redis, or in the environment variable {REDIS_URL_VARIABLE}"
            )
        redis_url = configured
    if redis_url is None and directory.is_in_use() and address.exists():
        redis_url = address.read_text(encoding="utf-8").strip()
    return Place(directory.name, directory.key, directory, redis_url)


async def report(place: Place, *, as_json: bool) -> str:
    """What there is to say of a run now."""
    is_running = place.directory is None or place.directory.is_in_use()
    if place.redis_url is None:
        return _report_ended(place, as_json=as_json)
    async with Registry(place.redis_url, place.key) as registry:
        snapshot = await registry.snapshot()
        first = snapshot.step * (snapshot.groups_per_step or 0)
        sequences = range(first, first + (snapshot.groups_per_step or 0))
        groups = dict(zip(sequences, await registry.ledger.groups(sequences), strict=True))
    if snapshot.status is None:
        raise RegistryError(f"the registry at {registry.shown_url} knows no run '{place.name}'")
    if as_json:
        return json.dumps(_tree(place, snapshot, groups, is_running), indent=2)
    return "\n".join(_lines(place, snapshot, groups, is_running))


def waits_for(snapshot: RunSnapshot, groups: Mapping[int, Mapping[str, Value] | None]) -> str:
    """What the next step waits for. groups: those of the step."""
    step = snapshot.step + 1
    if snapshot.status != "training":
        return f"the run is {snapshot.status}"
    if snapshot.num_steps is not None and step > snapshot.num_steps:
        return "all steps are made"
    states: dict[str, list[int]] = {}
    for sequence, group in groups.items():
        states.setdefault("not begun" if group is None else str(group["state"]), []).append(sequence)
    missing = {state: found for state, found in states.items() if state not in (GroupState.QUEUED, GroupState.TRAINED)}
    if not missing:
        return f"the learner makes step {step}"
    parts = [f"{len(found)} {state} ({_listed(found)})" for state, found in sorted(missing.items())]
    return f"step {step} waits for {sum(map(len, missing.values()))} of its {len(groups)} groups: {', '.join(parts)}"


def _listed(sequences: Sequence[int]) -> str:
    shown = ", ".join(map(str, sequences[:NUM_LISTED]))
    return shown if len(sequences) <= NUM_LISTED else f"{shown}, …"


def _lines(
    place: Place, snapshot: RunSnapshot, groups: Mapping[int, Mapping[str, Value] | None], is_running: bool
) -> list[str]:
    progress = snapshot.progress
    counts = [f"{state.value.replace('_', ' ')} {snapshot.group_counts[state]}" for state in GroupState]
    lines = [
        f"run      {place.name}: {snapshot.status}, life {snapshot.life}",
        f"step     {snapshot.step} of {snapshot.num_steps}, weight version {snapshot.weight_version}"
        + (f", reward {float(progress['reward']):.3f}" if "reward" in progress else "")
        + (f", {time.time() - float(progress['updated_s']):.0f} s ago" if "updated_s" in progress else ""),
        f"groups   {', '.join(counts)}",
    ]
    if is_running and (snapshot.job or snapshot.dashboard):
        lines.append(f"in Ray   {' '.join(filter(None, (snapshot.job and f'job {snapshot.job}', snapshot.dashboard)))}")
    lines += [
        f"gave up  {prompt_id} (group {entry['sequence']}): {entry['reason']}"
        for prompt_id, entry in list(snapshot.given_up.items())[:NUM_LISTED]
    ]
    for worker_id, worker in sorted(snapshot.workers.items()):
        version = "" if worker.weight_version is None else f", weight version {worker.weight_version}"
        lines.append(f"worker   {worker_id}: {worker.state}{version}")
    lines.append(f"waiting  {waits_for(snapshot, groups)}" if is_running else _how_to_go_on(place))
    return lines


def _tree(
    place: Place, snapshot: RunSnapshot, groups: Mapping[int, Mapping[str, Value] | None], is_running: bool
) -> dict[str, Any]:
    return {
        "run": place.name,
        "is_running": is_running,
        "status": snapshot.status,
        "life": snapshot.life,
        "step": snapshot.step,
        "num_steps": snapshot.num_steps,
        "weight_version": snapshot.weight_version,
        "job": snapshot.job,
        "dashboard": snapshot.dashboard,
        "progress": dict(snapshot.progress),
        "groups": {state.value: count for state, count in snapshot.group_counts.items()},
        "given_up": dict(snapshot.given_up),
        "workers": {
            worker_id: {"kind": worker.kind, "state": worker.state, "weight_version": worker.weight_version}
            for worker_id, worker in snapshot.workers.items()
        },
        "waiting": waits_for(snapshot, groups) if is_running else None,
    }


def _report_ended(place: Place, *, as_json: bool) -> str:
    assert place.directory is not None
    summary = read_summary(place.directory.summary_path)  # None: it was killed
    if as_json:
        return json.dumps({"run": place.name, "is_running": False, "summary": summary}, indent=2)
    if summary is None:
        return f"run      {place.name}: has ended without a word\n{_how_to_go_on(place)}"
    told = f"run      {place.name}: has ended, {summary['status']} after {summary['steps']} steps"
    error = f"\nerror    {summary['error']}" if summary.get("error") else ""
    return told + error + ("" if summary["status"] == "finished" else f"\n{_how_to_go_on(place)}")


def _how_to_go_on(place: Place) -> str:
    assert place.directory is not None
    return f"ended    no launcher runs here; go on with it: {place.directory.resume_command}"


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.status",
        description="Print a run's progress, its groups by state, its workers, and what waits for what.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory; or, with --redis, the name of a run")
    parser.add_argument("--redis", metavar="URL", help="registry; default: that of the run directory")
    parser.add_argument("--json", action="store_true", help="print an object instead of text")
    parser.add_argument("--watch", action="store_true", help=f"print again every {WATCH_EVERY_S:g} s, until Ctrl-C")
    return parser


if __name__ == "__main__":
    sys.exit(main())
