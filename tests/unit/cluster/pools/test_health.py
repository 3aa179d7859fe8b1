"""The health state machine, over every sequence of events up to a length, and long random ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product

import pytest

from cluster.pools.health import IN_SERVICE, TRANSITIONS, Health, HealthState
from rollout.records import WeightVersion

S = HealthState
LIVE = WeightVersion(0, 2)
OLD = WeightVersion(0, 1)
NEWER = WeightVersion(0, 3)
OF_ANOTHER_LIFE = WeightVersion(1, 2)
Event = Callable[[Health], None]
EVENTS: dict[str, Event] = {
    "started": Health.started,
    "holds the live version": lambda health: health.holds(LIVE, LIVE),
    "holds an old version": lambda health: health.holds(OLD, LIVE),
    "missed": Health.missed,
    "falls behind": Health.falls_behind,
    "answered": lambda health: health.answered(LIVE),
    "answered while a newer version is live": lambda health: health.answered(NEWER),
    "drain": Health.drain,
    "die": Health.die,
}


def walk(names: Sequence[str]) -> list[HealthState]:
    """The states that a worker goes through, the first one included."""
    health = Health()
    states = [health.state]
    for name in names:
        EVENTS[name](health)
        states.append(health.state)
    return states


def all_walks() -> Iterator[tuple[tuple[str, ...], list[HealthState]]]:
    rng = random.Random(0)
    for names in product(EVENTS, repeat=5):
        yield names, walk(names)
    for _ in range(2000):
        names = tuple(rng.choices(list(EVENTS), weights=[4, 4, 4, 4, 4, 4, 4, 1, 0.2], k=40))
        yield names, walk(names)


def test_no_sequence_of_events_leaves_the_table_of_transitions() -> None:
    seen = set()
    for names, states in all_walks():
        for before, after in pairwise(states):
            assert before == after or after in TRANSITIONS[before], (names, states)
            seen.add((before, after))
    for before, possible in TRANSITIONS.items():
        assert {(before, after) for after in possible} <= seen, "every step in the table can happen"


def test_no_sequence_of_events_leads_from_dead_to_anything_else() -> None:
    for names, states in all_walks():
        if S.DEAD in states:
            assert set(states[states.index(S.DEAD) :]) == {S.DEAD}, names


def test_a_worker_becomes_ready_only_with_the_live_version() -> None:
    for names, states in all_walks():
        loaded = [""]
        for name, before, after in zip(names, states, states[1:], strict=False):
            loaded += [name] if name.startswith("holds") else []
            if after is S.READY and before is not S.READY:
                assert loaded[-1] == "holds the live version", names
                assert name in ("holds the live version", "answered"), names


def test_a_worker_that_drains_takes_no_way_back() -> None:
    for names, states in all_walks():
        if S.DRAINING in states:
            assert set(states[states.index(S.DRAINING) :]) <= {S.DRAINING, S.DEAD}, names


@pytest.mark.parametrize(
    ("names", "state"),
    [
        ([], S.JOINING),
        (["holds the live version"], S.JOINING),
        (["started"], S.STALE),
        (["started", "holds an old version"], S.STALE),
        (["started", "holds an old version", "holds the live version"], S.READY),
        (["started", "holds the live version", "holds an old version"], S.READY),
        (["started", "holds the live version", "holds an old version", "missed", "answered"], S.STALE),
        (["started", "holds the live version", "missed"], S.SUSPECT),
        (["started", "holds the live version", "missed", "answered"], S.READY),
        (["started", "holds the live version", "missed", "answered while a newer version is live"], S.STALE),
        (["started", "missed"], S.STALE),
        (["started", "holds the live version", "falls behind"], S.STALE),
        (["started", "holds the live version", "falls behind", "holds the live version"], S.READY),
        (["started", "holds the live version", "missed", "falls behind"], S.SUSPECT),
        (["drain"], S.JOINING),
        (["started", "holds the live version", "missed", "drain"], S.DRAINING),
    ],
)
def test_what_each_event_means(names: list[str], state: HealthState) -> None:
    assert walk(names)[-1] is state


def test_a_version_of_an_earlier_life_of_the_learner_is_not_the_live_one_though_its_number_is() -> None:
    health = Health()
    health.started()
    health.holds(LIVE, LIVE)
    health.missed()
    health.answered(OF_ANOTHER_LIFE)
    assert health.state is S.STALE
    health.holds(LIVE, OF_ANOTHER_LIFE)
    assert health.state is S.STALE
    health.holds(OF_ANOTHER_LIFE, OF_ANOTHER_LIFE)
    assert health.state is S.READY


def test_a_late_answer_of_a_dead_worker_changes_nothing() -> None:
    states = walk(["started", "holds the live version", "missed", "die", "answered", "holds the live version"])
    assert states[-3:] == [S.DEAD] * 3


def test_only_workers_that_will_answer_calls_are_in_service() -> None:
    assert set(S) - IN_SERVICE == {S.DRAINING, S.DEAD}
