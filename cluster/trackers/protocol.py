"""What a tracker is told. Each class that implements `Tracker` imports its library when it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rollout.records import UInt8Array


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that a tracker is told of."""

    name: str
    key: str
    """Unique, and the same after the run was resumed: it goes on in the same run of the tracker."""
    folder: Path
    """For the tracker's own files."""
    config: Mapping[str, Any]
    """As a tree, without secrets."""


@dataclass(frozen=True, slots=True)
class TrackedPicture:
    """A picture and what stands under it."""

    picture: UInt8Array
    """uint8 [height, width, 3], RGB."""
    caption: str


class Tracker(Protocol):
    """Any method may take its time, and may raise: it is called from a thread of its own."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """All finite metrics of a step."""

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        """Samples of a step."""

    def rewind(self, step: int) -> None:
        """The run goes on from `step`: later ones are made again."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """How the run ended: summary.json."""

    def close(self) -> None:
        """Send what is left."""
