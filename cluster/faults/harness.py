"""Injures a run again and again, waits for each recovery, and checks at the end that nothing was lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from cluster.faults.injuries import Injury, choose
from cluster.faults.invariants import check_ledger, check_metrics, check_rewards
from cluster.faults.recovery import Fault, Recovery, read_registry
from cluster.faults.supervisor import Supervisor
from configs.schema import RunConfig

MAX_PAUSE_S: Final = 5.0
"""Between a recovery and the next injury."""


def injure_many(
    supervisor: Supervisor, find: Callable[[], Sequence[Injury]], num_injuries: int, seed: int
) -> list[Fault]:
    """find: all that can be done to the run as it is at the moment; told on the screen, one line each.

    Ctrl-C ends it before its time: what was survived so far is returned.
    """
    rng = random.Random(seed)
    faults: list[Fault] = []
    supervisor.wait_until(lambda: supervisor.num_steps >= 1, "the first step")
    try:
        _go_on_injuring(supervisor, find, num_injuries, rng, faults)
    except KeyboardInterrupt:
        print("no more injuries; the run is stopped and checked (Ctrl-C once more to end at once)", flush=True)
    return faults


def _go_on_injuring(
    supervisor: Supervisor,
    find: Callable[[], Sequence[Injury]],
    num_injuries: int,
    rng: random.Random,
    faults: list[Fault],
) -> None:
    while len(faults) < num_injuries:
        supervisor.run_for(rng.uniform(0.0, MAX_PAUSE_S))
        injury = choose(find(), rng, Counter(fault.kind for fault in faults))
        if injury is None:
            continue  # all that may be injured is being replaced
        fault = _injure(supervisor, injury)
        faults.append(fault)
        how = f"resumed, {fault.steps_redone} steps redone" if fault.resumed else "in place"
        print(
            f"[{len(faults)}/{num_injuries}] {fault.kind} after step {fault.step}: recovered {how} "
            f"in {fault.recovery_s:.1f} s",
            flush=True,
        )


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


def stop_and_check(supervisor: Supervisor, config: RunConfig, *, only_rewards: bool) -> list[str]:
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
