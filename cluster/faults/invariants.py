"""What must hold after any number of deaths. Pure functions; each returns what is broken, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.reports.metrics import MetricsRow
from cluster.state.ledger import GroupState
from cluster.state.registry import RunSnapshot


def check_metrics(rows: Sequence[MetricsRow]) -> list[str]:
    """Every step is there once and in order, versions go up by one, losses are finite."""
    broken: list[str] = []
    steps = [row["step"] for row in rows]
    if steps != list(range(1, len(rows) + 1)):
        broken.append(f"steps are not 1 to {len(rows)}, each once and in order: {_first_jump(steps)}")
    versions = [row["weight_version"] for row in rows]
    if versions != steps:
        broken.append(f"weight versions do not go up by one a step: {_first_jump(versions)}")
    wrong = [row["step"] for row in rows if row["loss"] is None or not math.isfinite(row["loss"])]
    if wrong:
        broken.append(f"the loss is not finite at steps {wrong}")
    return broken


def check_ledger(snapshot: RunSnapshot, groups_per_step: int, max_in_flight: int) -> list[str]:
    """The groups of every step made are trained, no others are, and no more are under way than admission allows.

    snapshot: taken between two steps, or while a run is stopped.
    """
    broken: list[str] = []
    trained = snapshot.group_counts[GroupState.TRAINED]
    if trained != snapshot.step * groups_per_step:
        broken.append(f"{trained} groups are trained, but {snapshot.step} steps take {snapshot.step * groups_per_step}")
    negative = {str(state): count for state, count in snapshot.group_counts.items() if count < 0}
    if negative:
        broken.append(f"counts below 0: {negative}")
    under_way = sum(
        count
        for state, count in snapshot.group_counts.items()
        if state not in (GroupState.TRAINED, GroupState.GIVEN_UP)
    )
    if under_way > max_in_flight:
        broken.append(f"{under_way} groups are under way, but admission lets {max_in_flight} through")
    return broken


def check_rewards(snapshot: RunSnapshot, rows: Sequence[MetricsRow], groups_per_step: int) -> list[str]:
    """For faults of rewards alone: no prompt is given up for them, and hardly a group is drawn again.

    rows: of a launcher that was never started again.
    """
    broken = [f"prompt {prompt_id} was given up: {record}" for prompt_id, record in snapshot.given_up.items()]
    num_groups = len(rows) * groups_per_step
    num_again = int(rows[-1]["groups_rolled_again"] or 0) if rows else 0
    if num_again > max(1, num_groups // 100):
        broken.append(f"{num_again} groups were drawn again, of {num_groups}: more than one in a hundred")
    return broken


def _first_jump(values: Sequence[float | None]) -> str:
    for place, value in enumerate(values):
        if value != place + 1:
            return f"line {place + 1} has {value}"
    return "none"
