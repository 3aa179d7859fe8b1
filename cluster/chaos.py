"""Train while a run is injured at random moments; then check that nothing was lost.

    python -m cluster.chaos --config configs/shapes_cpu.yaml --kills 20 --seed 0

Processes of the run are killed (SIGKILL) and frozen (SIGSTOP): rollout workers and their engines, reward workers, the
trajectory queue, learner ranks. Redis and the launcher are killed, Redis is made late, the disk is filled, and replicas
of rewards are told to misbehave for good (`cluster.faults.injuries`). What the run does not survive in place goes on by
`cluster.launch --resume auto`. At the end the run is stopped, the invariants of `cluster.faults.invariants` are
checked, and that no process outlives it.
Exit codes: 0 all held; 1 something did not; 2 wrong config.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

from cluster.benchmarks.report import Table, describe_machine
from cluster.faults.injuries import (
    DISK_FULL,
    KINDS,
    Injury,
    choose,
    find_injuries,
    small_disk,
    why_no_small_disk,
)
from cluster.faults.invariants import check_ledger, check_metrics, check_rewards
from cluster.faults.recovery import Fault, Recovery, read_registry
from cluster.faults.sabotage import ORDERS, orders_of, sabotage
from cluster.faults.supervisor import Supervisor
from cluster.reports.progress import format_duration
from cluster.session.ray_connection import PROJECT_ROOT
from configs.command_line import exit_code_of
from configs.errors import RunError
from configs.load import DEFAULT_CONFIG, load_config
from configs.schema import RunConfig

RUN_NAME = "chaos"
MAX_PAUSE_S = 5.0
"""Between a recovery and the next injury."""
OVERRIDES = (
    f"run.name={RUN_NAME}",
    "run.steps=100000",
    "checkpoint.every_steps=2",
    "samples.every_steps=100000",
    "data.evaluation={}",
    "cluster.heartbeat_s=2",
    "cluster.heartbeat_timeout_s=10",
    "registry.patience_s=30",
    "rollout.group_timeout_s=60",
    "run.step_timeout_s=60",
    "run.max_restarts=1000",
)
"""Checkpoints often, pictures and evaluations never: here it is not the reward that counts. What is silent is given up
sooner than a run of days would, so that a freeze takes seconds of the harness's time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, ends what was started
    return exit_code_of(partial(_run, options), "the processes of the run are killed")


def _run(options: argparse.Namespace) -> int:
    directory = Path(options.output_dir or f"runs/chaos-{datetime.now(UTC):%Y%m%d-%H%M%S}").absolute()
    overrides = [*OVERRIDES, *options.set, f"run.dir={directory}"]
    config = load_config(options.config, overrides)
    if set(options.kinds) & set(ORDERS):
        overrides += sabotage(config, orders_of(directory))
        config = load_config(options.config, overrides)
    directory.mkdir(parents=True)
    print(f"{describe_machine()}\n{options.kills} injuries, seed {options.seed}; all of it in {directory}", flush=True)
    if config.warm_start is not None:
        _warm_start(Path(options.config), overrides)
    with ExitStack() as stack:
        if DISK_FULL in options.kinds:
            stack.enter_context(small_disk(directory))
        supervisor = Supervisor(Path(options.config), overrides, directory, RUN_NAME, options.timeout)
        stack.callback(supervisor.close)
        faults = _injure_many(supervisor, options)
        broken = _stop_and_check(supervisor, config, only_rewards=set(options.kinds) <= {"reward", *ORDERS})
    print(f"\n{_table(faults).markdown()}\n")
    print("\n".join(broken) if broken else f"all invariants hold after {len(faults)} of {options.kills} injuries")
    return 1 if broken else 0


def _warm_start(config_path: Path, overrides: Sequence[str]) -> None:
    """Ahead of the run, whose first step is waited for no longer than a recovery; does nothing the second time."""
    sets = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "learner.warm_start", "--config", str(config_path), *sets]
    exit_code = subprocess.run(command, cwd=PROJECT_ROOT, check=False).returncode
    if exit_code:
        raise RunError(f"the warm start ended with exit code {exit_code}; it says above why")


def _injure_many(supervisor: Supervisor, options: argparse.Namespace) -> list[Fault]:
    rng = random.Random(options.seed)
    faults: list[Fault] = []
    supervisor.wait_until(lambda: supervisor.num_steps >= 1, "the first step")
    while len(faults) < options.kills:
        supervisor.run_for(rng.uniform(0.0, MAX_PAUSE_S))
        injury = choose(find_injuries(supervisor, options.kinds), rng)
        if injury is None:
            continue  # all that may be injured is being replaced
        fault = _injure(supervisor, injury)
        faults.append(fault)
        how = f"resumed, {fault.steps_redone} steps redone" if fault.resumed else "in place"
        print(
            f"[{len(faults)}/{options.kills}] {fault.kind} after step {fault.step}: recovered {how} "
            f"in {fault.recovery_s:.1f} s",
            flush=True,
        )
    return faults


def _injure(supervisor: Supervisor, injury: Injury) -> Fault:
    recovery = Recovery(supervisor, injury.kind, injury.victim)
    injury.inflict()
    try:
        lasted_s = 0.0
        if injury.lasts_s:
            lasted_s = supervisor.run_for(injury.lasts_s)
            injury.end()
            recovery.from_here()
        recovered_s = supervisor.wait_until(recovery.is_over, f"recovery from {injury.kind}")
    finally:
        injury.end()
    return recovery.fault(lasted_s + recovered_s)


def _stop_and_check(supervisor: Supervisor, config: RunConfig, *, only_rewards: bool) -> list[str]:
    """End the run in good order after two more steps; returns what is broken. only_rewards: only they were injured."""
    last = supervisor.num_steps + 2
    supervisor.wait_until(lambda: supervisor.num_steps >= last, "two more steps after the last injury")
    exit_code = supervisor.stop()
    algorithm = config.algorithm
    max_in_flight = (algorithm.max_staleness + 1) * algorithm.groups_per_step
    broken = check_metrics(supervisor.rows())
    snapshot = read_registry(supervisor)
    broken += check_ledger(snapshot, algorithm.groups_per_step, max_in_flight)
    if only_rewards:
        broken += check_rewards(snapshot, supervisor.rows(), algorithm.groups_per_step)
    if exit_code != 143:
        broken.append(f"the run did not end in good order on SIGTERM: exit code {exit_code}")
    return broken + [f"a process has outlived the run: {process}" for process in supervisor.orphans()]


def _table(faults: Sequence[Fault]) -> Table:
    rows = []
    for kind in KINDS:
        of_kind = [fault for fault in faults if fault.kind == kind]
        if not of_kind:
            continue
        times = [fault.recovery_s for fault in of_kind]
        rows.append(
            (
                kind,
                str(len(of_kind)),
                str(sum(fault.resumed for fault in of_kind)),
                f"{format_duration(median(times))} ({min(times):.1f} to {max(times):.1f} s)",
                str(sum(fault.groups_rolled_again for fault in of_kind)),
                str(sum(fault.steps_redone for fault in of_kind)),
            )
        )
    return Table(
        "Faults",
        "A name alone: killed with SIGKILL; freeze: SIGSTOP. Recovery: from the injury until another worker of the "
        "pool was READY; for what there is one of, until the next step was made. A resumed run goes on from its last "
        "whole checkpoint.",
        ("injury", "times", "of them resumed", "recovery, median", "groups rolled again", "steps redone"),
        tuple(rows),
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.chaos",
        description="Train while the run is injured at random; then check that nothing was lost.",
        epilog=f"kinds of injuries: {', '.join(KINDS)}",
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="FILE", help="of the run to train")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="how many injuries (default 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of injuries and moments (default 0)")
    parser.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="with spaces or commas; default: all that this machine allows"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the run; repeatable")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="of each recovery (default 300)")
    parser.add_argument("--output-dir", metavar="DIR", help="default runs/chaos-DATE-TIME")
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with all kinds that this machine allows where none are named."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    reason = why_no_small_disk()
    if options.kinds is None:
        options.kinds = [kind for kind in KINDS if kind != DISK_FULL or reason is None]
    options.kinds = [kind for given in options.kinds for kind in given.split(",") if kind]
    if unknown := sorted(set(options.kinds) - set(KINDS)):
        parser.error(f"--kinds: '{unknown[0]}' is no kind of injury; use {', '.join(KINDS)}")
    if DISK_FULL in options.kinds and reason is not None:
        parser.error(f"--kinds {DISK_FULL}: {reason}")
    return options


if __name__ == "__main__":
    sys.exit(main())
