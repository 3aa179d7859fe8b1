"""The numbers of a step as Ray metrics: Ray's dashboard and Prometheus show them as `ray_bicot_…`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ray.util.metrics import Gauge


class RayGauges:
    """One gauge a metric key, made when the key is first seen: `reward/mean` becomes `bicot_reward_mean`."""

    def __init__(self, run_name: str) -> None:
        self._run_name = run_name
        self._gauges: dict[str, Gauge] = {}

    def update(self, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            if not math.isfinite(value):
                continue
            if key not in self._gauges:
                name = "bicot_" + re.sub(r"[^a-zA-Z0-9_]", "_", key)
                self._gauges[key] = Gauge(name, description=f"bicot: {key}", tag_keys=("run",))
                self._gauges[key].set_default_tags({"run": self._run_name})
            self._gauges[key].set(value)
