"""Each tracker in a thread of its own, behind a bounded queue: it never stops a run, and never slows it.

RunLog ─► metrics, pictures, … ─► [ at most MAX_WAITING ] ─► thread ─► Tracker
                full: dropped, and said once                     │ raises: said once, and it is tried on
                                                                 └ cannot be made: said once, and it is left alone
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cluster.trackers.protocol import TrackedPicture, TrackedRun, Tracker
from configs.local.masking import mask_text

MAX_WAITING: Final = 256
"""Calls that wait for a tracker: some hundred steps."""
CLOSE_S: Final = 30.0
"""For all trackers together to send what is left at the end of a run."""
Call = Callable[[Tracker], None]
Make = Callable[[TrackedRun], Tracker]


def _tensorboard(run: TrackedRun) -> Tracker:
    from cluster.trackers.tensorboard import TensorBoard

    return TensorBoard(run)


def _wandb(run: TrackedRun) -> Tracker:
    from cluster.trackers.wandb_tracker import WandB

    return WandB(run)


def _trackio(run: TrackedRun) -> Tracker:
    from cluster.trackers.trackio_tracker import Trackio

    return Trackio(run)


def _mlflow(run: TrackedRun) -> Tracker:
    from cluster.trackers.mlflow_tracker import MLflow

    return MLflow(run)


MAKERS: Final[Mapping[str, Make]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
"""Name in the config -> what makes it."""


class Trackers:
    """All trackers of a run. No method waits, but for `close`, and none raises."""

    def __init__(self, names: Sequence[str], run: TrackedRun, makers: Mapping[str, Make] = MAKERS) -> None:
        self._threads = [_TrackerThread(name, makers[name], run) for name in names]

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Of a step; what is not finite is left out."""
        finite = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
        self._tell(lambda tracker: tracker.metrics(step, finite))

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        self._tell(lambda tracker: tracker.pictures(step, pictures))

    def rewind(self, step: int) -> None:
        self._tell(lambda tracker: tracker.rewind(step))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._tell(lambda tracker: tracker.summary(values))

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait until all is sent, as long as this; a tracker that needs longer is left behind."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.end()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def take_warnings(self) -> list[str]:
        """What is to be told to the user, each once."""
        return [warning for thread in self._threads if (warning := thread.take_warning()) is not None]

    def _tell(self, call: Call) -> None:
        for thread in self._threads:
            thread.tell(call)


class _TrackerThread:
    def __init__(self, name: str, make: Make, run: TrackedRun) -> None:
        self._name, self._make, self._run = name, make, run
        self._queue: queue.Queue[Call | None] = queue.Queue(MAX_WAITING)
        self._warning: str | None = None
        self._has_warned = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def tell(self, call: Call) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._warn(f"is more than {MAX_WAITING} calls behind; it misses what comes meanwhile")

    def end(self) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self._warn("was far behind at the end of the run; it misses the last steps")

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._warn(f"had not sent everything {timeout_s:.0f} s after the end of the run")

    def take_warning(self) -> str | None:
        warning, self._warning = self._warning, None
        return warning

    def _work(self) -> None:
        try:
            tracker = self._make(self._run)
        except BaseException as error:  # noqa: BLE001 - libraries raise what they like, SystemExit too
            self._warn(f"cannot be started, and the run goes on without it: {_told(error)}")
            while self._queue.get() is not None:
                continue
            return
        while (call := self._queue.get()) is not None:
            self._try(lambda call=call: call(tracker))  # type: ignore[misc]
        self._try(tracker.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - as above
            self._warn(f"does not take what it is told (it is tried again with each step): {_told(error)}")

    def _warn(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned, self._warning = True, f"tracker {self._name} {text}"


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return mask_text(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}")
