"""The health of one worker of a pool, as a state machine: no clock, no Ray.

                started          holds the live version
    JOINING ─────────────► STALE ─────────────────────► READY ──────────┐ missed a heartbeat
                             ▲                            ▲             ▼
                             │                            └───────── SUSPECT
                             └─ answered, with old weights ── answered ─┘
    READY ── was late with new weights ──► STALE
    STALE, READY, SUSPECT ── drain ──► DRAINING              any ── die ──► DEAD, for good

Only a READY worker is given calls. There are two ways to READY, and both ask for the live version, so a
worker that was respawned, that joins late, or that was out of sight during a weight sync rolls nothing
before it has caught up. One that is only late with new weights, on a slow link, is STALE and not DEAD: it
goes on loading them, and is given no calls meanwhile. A DEAD worker may still run somewhere, cut off: what
it says is not listened to, and its place is taken by a worker with a new id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from rollout.records import WeightVersion


class HealthState(StrEnum):
    """What a pool thinks of a worker."""

    JOINING = "JOINING"
    STALE = "STALE"
    READY = "READY"
    SUSPECT = "SUSPECT"
    DRAINING = "DRAINING"
    DEAD = "DEAD"


_S = HealthState

TRANSITIONS: Final[Mapping[HealthState, frozenset[HealthState]]] = {
    _S.JOINING: frozenset({_S.STALE, _S.DEAD}),
    _S.STALE: frozenset({_S.READY, _S.DRAINING, _S.DEAD}),
    _S.READY: frozenset({_S.SUSPECT, _S.STALE, _S.DRAINING, _S.DEAD}),
    _S.SUSPECT: frozenset({_S.READY, _S.STALE, _S.DRAINING, _S.DEAD}),
    _S.DRAINING: frozenset({_S.DEAD}),
    _S.DEAD: frozenset(),
}
"""Every step that is possible; `Health` makes no other."""

IN_SERVICE: Final = frozenset({_S.JOINING, _S.STALE, _S.READY, _S.SUSPECT})
"""States of the workers that a pool counts on, now or soon."""

STARTED: Final = frozenset({_S.STALE, _S.READY, _S.SUSPECT})
"""Of these, the workers that have loaded their model once, and so show that it can be done."""


@dataclass(slots=True)
class Health:
    """Every event may come in every state: news that no longer matters changes nothing."""

    _state: HealthState = field(default=HealthState.JOINING, init=False)
    _held_version: WeightVersion | None = field(default=None, init=False)

    @property
    def state(self) -> HealthState:
        return self._state

    @property
    def held_version(self) -> WeightVersion | None:
        """The weight version that it loaded last; None before the first."""
        return self._held_version

    @property
    def is_dead(self) -> bool:
        return self._state is HealthState.DEAD

    def started(self) -> None:
        """It has loaded its model and answers calls; of its weights nothing is known yet."""
        if self._state is HealthState.JOINING:
            self._move(HealthState.STALE)

    def holds(self, version: WeightVersion, live_version: WeightVersion) -> None:
        """It has loaded `version`, while `live_version` is the one to have. (A learner that goes on from a
        checkpoint may make it one of an earlier number than before.)"""
        self._held_version = version
        if self._state is HealthState.STALE and version == live_version:
            self._move(HealthState.READY)

    def missed(self) -> None:
        """It did not answer a heartbeat in time."""
        if self._state is HealthState.READY:
            self._move(HealthState.SUSPECT)

    def falls_behind(self) -> None:
        """It has not loaded new weights in the time that others took; it may be at it."""
        if self._state is HealthState.READY:
            self._move(HealthState.STALE)

    def answered(self, live_version: WeightVersion) -> None:
        """It has answered a heartbeat, late or not."""
        if self._state is HealthState.SUSPECT:
            is_current = self._held_version == live_version
            self._move(HealthState.READY if is_current else HealthState.STALE)

    def drain(self) -> None:
        """It is to finish what it is at and to take nothing new. (One that still joins has nothing to finish.)"""
        if self._state in (HealthState.STALE, HealthState.READY, HealthState.SUSPECT):
            self._move(HealthState.DRAINING)

    def die(self) -> None:
        """It is gone, or counts as gone."""
        if self._state is not HealthState.DEAD:
            self._move(HealthState.DEAD)

    def _move(self, state: HealthState) -> None:
        assert state in TRANSITIONS[self._state], f"no way from {self._state} to {state}"
        self._state = state
