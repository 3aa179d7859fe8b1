"""The way out by Ray's metrics: Ray's dashboard and Prometheus show them as `ray_bicot_…`.

Ray exports the value of a gauge once and then forgets it; a value that is not set again is gone from Prometheus 20 s
later, which is less than many a step takes. So gauges are held here, and `resend` sets all of them again:

    set, count, observe ─► Ray (this process) ─► the node's agent ─► Prometheus
                  resend every RESEND_S ─┘         forgets gauges after 20 s

Counters and histograms stay, also after their process has ended.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from ray.util.metrics import Counter, Gauge, Histogram

from cluster.telemetry.series import BY_NAME

RESEND_S: Final = 5.0
_LOGGER = logging.getLogger(__name__)
Make = Callable[..., Any]
_KINDS: Final[Mapping[str, Make]] = {"gauge": Gauge, "counter": Counter, "histogram": Histogram}


class Exporter:
    """Series of one run, made when they are first told of. Nothing that Ray's metrics raise reaches the caller: they
    are for people who watch."""

    def __init__(self, run: str, *, is_on: bool = True, kinds: Mapping[str, Make] = _KINDS) -> None:
        """kinds: what makes the metrics; Ray's."""
        self._run = run
        self._is_on = is_on
        self._kinds = kinds
        self._metrics: dict[str, Any] = {}
        self._held: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._failed: set[str] = set()

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Hold a gauge at `value`; one that is not finite was not measured, and the last that was stays."""
        if not math.isfinite(value):
            return
        self._held[name, tuple(sorted(labels.items()))] = value
        self._do(name, labels, partial(_set, value=value))

    def count(self, name: str, by: float = 1.0, /, **labels: str) -> None:
        """Raise a counter."""
        if by > 0 and math.isfinite(by):
            self._do(name, labels, lambda metric, tags: metric.inc(by, tags))

    def count_to(self, name: str, total: float, /, **labels: str) -> None:
        """Raise a counter by what `total`, a sum that only grows, has grown since the last call."""
        place = (name, tuple(sorted(labels.items())))
        self.count(name, total - self._last.get(place, 0.0), **labels)
        self._last[place] = total

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Put a value into a histogram; one that is not finite is left out."""
        if math.isfinite(value):
            self._do(name, labels, lambda metric, tags: metric.observe(value, tags))

    def resend(self) -> None:
        """Set all gauges again."""
        for (name, labels), value in self._held.items():
            self._do(name, dict(labels), partial(_set, value=value))

    def _do(self, name: str, labels: Mapping[str, str], act: Callable[[Any, dict[str, str]], None]) -> None:
        if not self._is_on:
            return
        try:
            if name not in self._metrics:
                self._metrics[name] = self._make(name, tuple(labels))
            act(self._metrics[name], {"run": self._run, **labels})
        except Exception as error:  # noqa: BLE001 - a run does not end because it cannot be watched
            if name not in self._failed:
                self._failed.add(name)
                _LOGGER.warning("the metric %s cannot be told of: %s", name, error)

    def _make(self, name: str, labels: tuple[str, ...]) -> Any:
        series = BY_NAME.get(name)
        if series is None:  # one of the step's own metrics
            return self._kinds["gauge"](name, description=f"bicot: {name}", tag_keys=("run", *labels))
        more = {"boundaries": list(series.boundaries)} if series.kind == "histogram" else {}
        tags = ("run", *series.labels)
        return self._kinds[series.kind](name, description=series.meaning, tag_keys=tags, **more)


def _set(metric: Any, tags: dict[str, str], value: float) -> None:
    metric.set(value, tags)
