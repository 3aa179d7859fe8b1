"""Train while killing random processes of the run at random moments; then check that nothing was lost.

    python -m cluster.chaos --config configs/shapes_cpu.yaml --kills 20 --seed 0

Kills with SIGKILL: rollout workers and their engines, reward workers, the trajectory queue, learner ranks,
Redis, the launcher itself. What the run does not survive in place is resumed with
`cluster.launch --resume`. At the end the run is stopped, the invariants of `cluster.faults.invariants` are
checked, and that no process outlives it. Exit codes: 0 all held; 1 something did not; 2 wrong config.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from cluster.benchmarks.report import Table, describe_machine
from cluster.faults.invariants import check_ledger, check_metrics
from cluster.faults.recovery import Fault, Recovery, read_registry
from cluster.faults.supervisor import Supervisor
from cluster.faults.victims import KINDS, choose_victim, find_victims
from cluster.reports.progress import format_duration
from cluster.session.ray_connection import PROJECT_ROOT
from configs.command_line import exit_code_of
from configs.errors import RunError
from configs.load import DEFAULT_CONFIG, load_config
from configs.schema import RunConfig

RUN_NAME = "chaos"
MAX_PAUSE_S = 5.0
"""Between a recovery and the next kill."""
OVERRIDES = (
    f"run.name={RUN_NAME}",
    "run.steps=100000",
    "checkpoint.every_steps=2",
    "samples.every_steps=100000",
    "data.evaluation={}",
)
"""Checkpoints often, pictures and evaluations never: here it is not the reward that counts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, ends what was started
    return exit_code_of(partial(_run, options), "the processes of the run are killed")


def _run(options: argparse.Namespace) -> int:
    directory = Path(options.output_dir or f"runs/chaos-{datetime.now(UTC):%Y%m%d-%H%M%S}").absolute()
    overrides = [*OVERRIDES, *options.set, f"run.dir={directory}"]
    config = load_config(options.config, overrides)
    directory.mkdir(parents=True)
    print(f"{describe_machine()}\n{options.kills} kills, seed {options.seed}; all of it in {directory}", flush=True)
    if config.warm_start is not None:
        _warm_start(Path(options.config), overrides)
    supervisor = Supervisor(Path(options.config), overrides, directory, RUN_NAME, options.timeout)
    try:
        faults = _kill_many(supervisor, options)
        broken = _stop_and_check(supervisor, config)
    finally:
        supervisor.close()
    print(f"\n{_table(faults).markdown()}\n")
    print("\n".join(broken) if broken else f"all invariants hold after {len(faults)} of {options.kills} kills")
    return 1 if broken else 0


def _warm_start(config_path: Path, overrides: Sequence[str]) -> None:
    """Ahead of the run, whose first step is waited for no longer than a recovery; does nothing the second time."""
    sets = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "learner.warm_start", "--config", str(config_path), *sets]
    exit_code = subprocess.run(command, cwd=PROJECT_ROOT, check=False).returncode
    if exit_code:
        raise RunError(f"the warm start ended with exit code {exit_code}; it says above why")


def _kill_many(supervisor: Supervisor, options: argparse.Namespace) -> list[Fault]:
    rng = random.Random(options.seed)
    faults: list[Fault] = []
    supervisor.wait_until(lambda: supervisor.num_steps >= 1, "the first step")
    while len(faults) < options.kills:
        supervisor.run_for(rng.uniform(0.0, MAX_PAUSE_S))
        redis = psutil.Process(supervisor.redis.process_id)
        victim = choose_victim(find_victims(supervisor.launcher, redis), options.kinds, rng)
        if victim is None:
            continue  # all that may be killed is being replaced
        recovery = Recovery(supervisor, victim.kind)
        victim.process.kill()
        fault = recovery.fault(supervisor.wait_until(recovery.is_over, f"recovery from the death of: {victim.kind}"))
        faults.append(fault)
        how = f"resumed, {fault.steps_redone} steps redone" if fault.resumed else "in place"
        print(
            f"[{len(faults)}/{options.kills}] {fault.kind} killed after step {fault.step}: recovered {how} "
            f"in {fault.recovery_s:.1f} s",
            flush=True,
        )
    return faults


def _stop_and_check(supervisor: Supervisor, config: RunConfig) -> list[str]:
    """End the run in good order after two more steps; returns what is broken."""
    last = supervisor.num_steps + 2
    supervisor.wait_until(lambda: supervisor.num_steps >= last, "two more steps after the last kill")
    exit_code = supervisor.stop()
    algorithm = config.algorithm
    max_in_flight = (algorithm.max_staleness + 1) * algorithm.groups_per_step
    broken = check_metrics(supervisor.rows())
    broken += check_ledger(read_registry(supervisor), algorithm.groups_per_step, max_in_flight)
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
        "Processes killed with SIGKILL. Recovery: until another worker of the pool was READY; for what there is "
        "one of, until the next step was made. A resumed run goes on from its last whole checkpoint.",
        ("killed", "times", "of them resumed", "recovery, median", "groups rolled again", "steps redone"),
        tuple(rows),
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.chaos",
        description="Train while killing random processes of the run; then check that nothing was lost.",
        epilog=f"kinds of victims: {', '.join(KINDS)}",
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="FILE", help="of the run to train")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="how many (default 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of victims and moments (default 0)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND", help="default: all")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the run; repeatable")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="of each recovery (default 300)")
    parser.add_argument("--output-dir", metavar="DIR", help="default runs/chaos-DATE-TIME")
    return parser


if __name__ == "__main__":
    sys.exit(main())
