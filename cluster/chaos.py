"""Train while killing random processes of the run at random moments; then check that nothing was lost.

    python -m cluster.chaos --config configs/shapes_cpu.yaml --kills 20 --seed 0

Kills with SIGKILL: rollout workers and their engines, reward workers, the trajectory queue, learner ranks,
Redis, the launcher itself. Of the kinds reward-fails, reward-slow and reward-shape, a replica of a reward is told
to misbehave for good (`cluster.faults.sabotage`); they are tried only where --kinds names them. What the run does
not survive in place is resumed with `cluster.launch --resume`. At the end the run is stopped, the invariants of
`cluster.faults.invariants` are checked, and that no process outlives it. Exit codes: 0 all held; 1 something did
not; 2 wrong config.
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
from cluster.faults.invariants import check_ledger, check_metrics, check_rewards
from cluster.faults.recovery import Fault, Recovery, read_registry
from cluster.faults.sabotage import SABOTAGE_KINDS, give_order, sabotage
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
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, ends what was started
    return exit_code_of(partial(_run, options), "the processes of the run are killed")


def _run(options: argparse.Namespace) -> int:
    directory = Path(options.output_dir or f"runs/chaos-{datetime.now(UTC):%Y%m%d-%H%M%S}").absolute()
    overrides = [*OVERRIDES, *options.set, f"run.dir={directory}"]
    config = load_config(options.config, overrides)
    directory.mkdir(parents=True)
    orders = directory / "orders"
    orders.mkdir()
    if set(options.kinds) & set(SABOTAGE_KINDS):
        overrides += sabotage(config, orders)
        config = load_config(options.config, overrides)
    print(f"{describe_machine()}\n{options.kills} kills, seed {options.seed}; all of it in {directory}", flush=True)
    if config.warm_start is not None:
        _warm_start(Path(options.config), overrides)
    supervisor = Supervisor(Path(options.config), overrides, directory, RUN_NAME, options.timeout)
    try:
        faults = _kill_many(supervisor, options, orders)
        broken = _stop_and_check(supervisor, config, only_rewards=set(options.kinds) <= {"reward", *SABOTAGE_KINDS})
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


def _kill_many(supervisor: Supervisor, options: argparse.Namespace, orders: Path) -> list[Fault]:
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
        if victim.kind in SABOTAGE_KINDS:
            give_order(orders, victim.process.pid, victim.kind)
        else:
            victim.process.kill()
        fault = recovery.fault(supervisor.wait_until(recovery.is_over, f"recovery from: {victim.kind}"))
        faults.append(fault)
        how = f"resumed, {fault.steps_redone} steps redone" if fault.resumed else "in place"
        print(
            f"[{len(faults)}/{options.kills}] {fault.kind} struck after step {fault.step}: recovered {how} "
            f"in {fault.recovery_s:.1f} s",
            flush=True,
        )
    return faults


def _stop_and_check(supervisor: Supervisor, config: RunConfig, *, only_rewards: bool) -> list[str]:
    """End the run in good order after two more steps; returns what is broken. only_rewards: nothing else was struck."""
    last = supervisor.num_steps + 2
    supervisor.wait_until(lambda: supervisor.num_steps >= last, "two more steps after the last kill")
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
    for kind in (*KINDS, *SABOTAGE_KINDS):
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
        "Processes killed with SIGKILL, or told to misbehave for good. Recovery: until another worker of the pool was "
        "READY; for what there is one of, until the next step was made. A resumed run goes on from its last whole "
        "checkpoint.",
        ("struck", "times", "of them resumed", "recovery, median", "groups rolled again", "steps redone"),
        tuple(rows),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.chaos",
        description="Train while killing random processes of the run; then check that nothing was lost.",
        epilog=f"kinds: killed are {', '.join(KINDS)}; told to misbehave for good are {', '.join(SABOTAGE_KINDS)}",
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="FILE", help="of the run to train")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="how many (default 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of victims and moments (default 0)")
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), metavar="KIND", help="with spaces or commas; default: all that die"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the run; repeatable")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="of each recovery (default 300)")
    parser.add_argument("--output-dir", metavar="DIR", help="default runs/chaos-DATE-TIME")
    options = parser.parse_args(arguments)
    options.kinds = [kind for given in options.kinds for kind in given.split(",") if kind]
    if unknown := sorted(set(options.kinds) - {*KINDS, *SABOTAGE_KINDS}):
        parser.error(f"--kinds: '{unknown[0]}' is no kind; use {', '.join((*KINDS, *SABOTAGE_KINDS))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
