"""Train while a run is injured at random moments; then check that nothing was lost.

    python -m cluster.chaos --kills 20 --seed 0        the shipped config, with steps of 16 pictures: SMALL_STEPS

On one machine, processes of the run are killed (SIGKILL), frozen (SIGSTOP) and kept from getting memory: rollout
workers and their engines, reward workers, the trajectory queue, learner ranks. Redis and the launcher are killed, Redis
is made late, disk and /dev/shm are filled, and replicas of rewards are told to misbehave for good
(`cluster.faults.injuries`). Then, on hosts made of namespaces, hosts are cut off and removed
(`cluster.faults.hosts_supervisor`). What a run does not survive in place goes on by `cluster.launch --resume auto`. At
the end each run is stopped, the invariants of `cluster.faults.invariants` are checked, and that no process outlives it.
Ctrl-C ends the injuries, and checks what was survived so far.
Exit codes: 0 all held; 1 something did not; 2 wrong config.
"""

from __future__ import annotations

import argparse
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
from cluster.faults import hosts
from cluster.faults.harness import injure_many, stop_and_check
from cluster.faults.hosts_supervisor import (
    HEAD,
    NODE_KINDS,
    HostsSupervisor,
    cluster_of_hosts,
    overrides_on_hosts,
)
from cluster.faults.injuries import KINDS as LOCAL_KINDS
from cluster.faults.injuries import find_injuries
from cluster.faults.recovery import Fault
from cluster.faults.sabotage import ORDERS, orders_of, sabotage
from cluster.faults.storage import DISK_FULL, SHM_FULL, own_shared_memory, small_disk, why_no_small_disk
from cluster.faults.supervisor import Supervisor
from cluster.reports.progress import format_duration
from cluster.session.ray_connection import PROJECT_ROOT
from configs.command_line import exit_code_of
from configs.errors import RunError
from configs.load import DEFAULT_CONFIG, load_config

KINDS = (*LOCAL_KINDS, *NODE_KINDS)
RUN_NAME = "chaos"
OVERRIDES = (
    f"run.name={RUN_NAME}",
    "run.steps=100000",
    "checkpoint.every_steps=2",
    "samples.every_steps=100000",
    "data.evaluation={}",
    "cluster.heartbeat_s=2",
    "cluster.heartbeat_timeout_s=10",
    "registry.patience_s=30",
    "rollout.group_timeout_s=180",
    "weight_sync.timeout_s=20",
    "run.step_timeout_s=300",
    "run.max_restarts=1000",
)
"""Checkpoints often, pictures and evaluations never: here it is not the reward that counts. What is silent is given up
sooner than a run of days would, so that a freeze takes seconds of the harness's time."""

SMALL_STEPS = ("algorithm.groups_per_step=4", "algorithm.group_size=4", "learner.micro_batch_size=8")
"""Of the default config, whose steps of 128 pictures teach more, and tell no sooner that a run goes on."""


def overrides_of(config: str, given: Sequence[str]) -> list[str]:
    """For the run of that config file; what was given on the command line goes before all of ours."""
    is_default = Path(config).resolve() == Path(DEFAULT_CONFIG).resolve()
    return [*OVERRIDES, *(SMALL_STEPS if is_default else ()), *given]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, ends what was started
    return exit_code_of(partial(_run, options), "the processes of the run are killed")


def _run(options: argparse.Namespace) -> int:
    directory = Path(options.output_dir or f"runs/chaos-{datetime.now(UTC):%Y%m%d-%H%M%S}").absolute()
    directory.mkdir(parents=True)
    print(f"{describe_machine()}\n{options.kills} injuries, seed {options.seed}; all of it in {directory}", flush=True)
    faults: list[Fault] = []
    broken: list[str] = []
    local = [kind for kind in options.kinds if kind not in NODE_KINDS]
    num_local = share_of(options.kills, local, options.kinds)
    for phase, kinds, num in (
        (_on_one_machine, local, num_local),
        (_on_hosts, [kind for kind in options.kinds if kind in NODE_KINDS], options.kills - num_local),
    ):
        if num:
            found, wrong = phase(options, kinds, num, directory)
            faults += found
            broken += wrong
    print(f"\n{_table(faults).markdown()}\n")
    print("\n".join(broken) if broken else f"all invariants hold after {len(faults)} of {options.kills} injuries")
    return 1 if broken else 0


def share_of(num: int, part: Sequence[str], whole: Sequence[str]) -> int:
    """How many of `num` injuries are of the kinds in `part`, where each kind of `whole` is as likely."""
    return round(num * len(part) / len(whole))


Outcome = tuple[list[Fault], list[str]]


def _on_one_machine(options: argparse.Namespace, kinds: Sequence[str], num: int, root: Path) -> Outcome:
    directory = root / "machine"
    overrides = [*overrides_of(options.config, options.set), f"run.dir={directory}"]
    config = load_config(options.config, overrides)
    if set(kinds) & set(ORDERS):
        overrides += sabotage(config, orders_of(directory))
        config = load_config(options.config, overrides)
    directory.mkdir()
    if config.warm_start is not None:
        _warm_start(Path(options.config), overrides)
    prefix = own_shared_memory() if SHM_FULL in kinds else ()
    with ExitStack() as stack:
        if DISK_FULL in kinds:
            stack.enter_context(small_disk(directory))
        supervisor = Supervisor(Path(options.config), overrides, directory, RUN_NAME, options.timeout, prefix)
        stack.callback(supervisor.close)
        faults = injure_many(supervisor, lambda: find_injuries(supervisor, kinds), num, options.seed)
        only_rewards = set(kinds) <= {"reward", *ORDERS}
        return faults, stop_and_check(supervisor, config, only_rewards=only_rewards)


def _on_hosts(options: argparse.Namespace, kinds: Sequence[str], num: int, root: Path) -> Outcome:
    directory = root / "hosts"
    directory.mkdir()
    with ExitStack() as stack:
        made = stack.enter_context(cluster_of_hosts(directory))
        overrides = [*overrides_of(options.config, options.set), *overrides_on_hosts(made[HEAD].address)]
        config = load_config(options.config, overrides)
        supervisor = HostsSupervisor(Path(options.config), overrides, directory, RUN_NAME, options.timeout, hosts=made)
        stack.callback(supervisor.close)
        faults = injure_many(supervisor, lambda: supervisor.find_injuries(kinds), num, options.seed)
        return faults, stop_and_check(supervisor, config, only_rewards=False)


def _warm_start(config_path: Path, overrides: Sequence[str]) -> None:
    """Ahead of the run, whose first step is waited for no longer than a recovery; does nothing the second time."""
    sets = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "learner.warm_start", "--config", str(config_path), *sets]
    exit_code = subprocess.run(command, cwd=PROJECT_ROOT, check=False).returncode
    if exit_code:
        raise RunError(f"the warm start ended with exit code {exit_code}; it says above why")


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
        "A name alone: killed with SIGKILL; freeze: SIGSTOP; memory: an actor's process gets no more. Recovery: from "
        "the injury until another worker of the pool was READY; of a lost host, until four more steps were made; of "
        "Redis, whose loss ends a run after `registry.patience_s` (30 s), until two steps were made after the resume; "
        "of all else, until the next step was made. A resumed run goes on from its last whole checkpoint.",
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
    parser.add_argument("--timeout", type=float, default=900.0, metavar="S", help="of each recovery (default 900)")
    parser.add_argument("--output-dir", metavar="DIR", help="default runs/chaos-DATE-TIME")
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with all kinds that this machine allows where none are named."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    no_disk, no_hosts = why_no_small_disk(), hosts.why_not()
    reasons = {DISK_FULL: no_disk, SHM_FULL: no_disk, **dict.fromkeys(NODE_KINDS, no_hosts)}
    if options.kinds is None:
        options.kinds = [kind for kind in KINDS if reasons.get(kind) is None]
    options.kinds = [kind for given in options.kinds for kind in given.split(",") if kind]
    for kind in options.kinds:
        if kind not in KINDS:
            parser.error(f"--kinds: '{kind}' is no kind of injury; use {', '.join(KINDS)}")
        if (reason := reasons.get(kind)) is not None:
            parser.error(f"--kinds {kind}: {reason}")
    return options


if __name__ == "__main__":
    sys.exit(main())
