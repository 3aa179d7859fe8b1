"""Trackers never stop or slow a run, and TensorBoard's files hold what they were told."""

from __future__ import annotations

import math
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.trackers import TrackedPicture, TrackedRun, Trackers
from cluster.trackers.threads import MAX_WAITING

PICTURES = [TrackedPicture(np.full((8, 8, 3), 200, np.uint8), "a red star | 0.50 | plan")] * 2


@pytest.fixture
def run(tmp_path: Path) -> TrackedRun:
    return TrackedRun(
        "trial", "trial-0123abcd", tmp_path / "trackers", {"run": {"steps": 9}, "model": {"path": "tiny"}}
    )


class Kept:
    """A tracker that remembers, and may be slow or broken."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.before = before
        self.told: list[tuple[str, Any]] = []

    def _tell(self, name: str, value: Any) -> None:
        self.before()
        self.told.append((name, value))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._tell("metrics", (step, dict(values)))

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        self._tell("pictures", (step, len(pictures)))

    def rewind(self, step: int) -> None:
        self._tell("rewind", step)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._tell("summary", dict(values))

    def close(self) -> None:
        self._tell("close", None)


def test_all_is_told_in_order_and_only_what_is_finite(run: TrackedRun) -> None:
    kept = Kept()
    trackers = Trackers(["kept"], run, {"kept": lambda run: kept})
    trackers.rewind(0)
    trackers.metrics(1, {"kl": 0.5, "parity/kl/cot": math.nan, "reward/mean": None})
    trackers.pictures(1, PICTURES)
    trackers.summary({"status": "finished"})
    trackers.close()
    assert kept.told == [
        ("rewind", 0),
        ("metrics", (1, {"kl": 0.5})),
        ("pictures", (1, 2)),
        ("summary", {"status": "finished"}),
        ("close", None),
    ]
    assert trackers.take_warnings() == []


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize("error", [RuntimeError("no\nnetwork"), SystemExit(3), ImportError("No module named 'x'")])
def test_one_that_cannot_be_made_is_said_once_and_the_others_go_on(run: TrackedRun, error: BaseException) -> None:
    kept = Kept()
    trackers = Trackers(["broken", "kept"], run, {"broken": lambda run: fail(error), "kept": lambda run: kept})
    for step in range(3):
        trackers.metrics(step, {"kl": 0.5})
    trackers.close()
    (warning,) = trackers.take_warnings()
    assert warning.startswith("tracker broken cannot be started, and the run goes on without it: ")
    assert "\n" not in warning
    assert len(kept.told) == 4


def test_one_that_raises_is_tried_again_and_said_once(run: TrackedRun) -> None:
    answers = [ConnectionError("away"), ConnectionError("away"), None, None]

    def stumble() -> None:
        if (error := answers.pop(0)) is not None:
            raise error

    kept = Kept(stumble)
    trackers = Trackers(["kept"], run, {"kept": lambda run: kept})
    for step in range(3):
        trackers.metrics(step, {"kl": 0.5})
    trackers.close()
    assert [name for name, _ in kept.told] == ["metrics", "close"]
    assert len(trackers.take_warnings()) == 1
    assert trackers.take_warnings() == []


def test_one_that_hangs_costs_the_run_nothing_and_is_left_behind(run: TrackedRun) -> None:
    release = threading.Event()
    kept = Kept(lambda: release.wait(30) or None)
    trackers = Trackers(["kept"], run, {"kept": lambda run: kept})
    began = time.monotonic()
    for step in range(2 * MAX_WAITING):
        trackers.metrics(step, {"kl": 0.5})
    trackers.close(timeout_s=0.2)
    assert time.monotonic() - began < 10
    (warning,) = trackers.take_warnings()
    assert "behind" in warning
    release.set()


def events(folder: Path) -> list[Any]:
    """All events of TensorBoard's files, in the order of the files: records of length, checksum, data, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_tensorboard_holds_numbers_pictures_and_texts_and_hides_steps_that_are_made_again(run: TrackedRun) -> None:
    for life in range(2):
        trackers = Trackers(["tensorboard"], run)
        trackers.rewind(2 * life)
        trackers.metrics(3, {"kl": 0.25 + life, "reward_correlation/a~b": -0.5})
        trackers.pictures(3, PICTURES)
        trackers.summary({"status": "stopped"})
        trackers.close()
        assert trackers.take_warnings() == []
        time.sleep(1.1)  # the names of TensorBoard's files differ by seconds
    told = events(run.folder / "tensorboard")
    values = [(event.step, value) for event in told for value in event.summary.value]
    scalars = [(step, value.tag, value.simple_value) for step, value in values if value.HasField("simple_value")]
    assert (3, "kl", 0.25) in scalars
    assert (3, "kl", 1.25) in scalars
    assert (3, "reward_correlation/a_vs_b", -0.5) in scalars
    tags = {value.tag for _, value in values}
    assert any(tag.startswith("samples") for tag in tags)
    assert any(tag.startswith("config") for tag in tags)
    from tensorboardX.proto.event_pb2 import SessionLog

    assert [event.step for event in told if event.session_log.status == SessionLog.START] == [3]
