"""MLflow: the server of MLFLOW_TRACKING_URI, or MLflow's local store where that is not set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.trackers.protocol import TrackedPicture, TrackedRun

KEY_TAG = "bicot.key"
MAX_PARAM = 500
"""Characters of a value; MLflow takes 6000, older servers 500."""


class MLflow:
    """A run in the experiment of MLFLOW_EXPERIMENT_NAME, `bicot` by default, with the run's key as a tag: a resumed run
    finds it by that."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "bicot")
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        found = self._client.search_runs([number], f"tags.`{KEY_TAG}` = '{run.key}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(number, tags={KEY_TAG: run.key}, run_name=run.name).info.run_id
        for field, value in _flat(run.config):
            self._client.log_param(self._id, field, value[:MAX_PARAM])

    def rewind(self, step: int) -> None:
        """Steps that are made again are kept beside the earlier ones."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [Metric(_allowed(key), value, now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        for number, entry in enumerate(pictures):
            self._client.log_image(self._id, entry.picture, key=f"samples/{number}", step=step)
        captions = "".join(f"{number}: {entry.caption}\n" for number, entry in enumerate(pictures))
        self._client.log_text(self._id, captions, f"samples/step_{step:06d}.txt")

    def summary(self, values: Mapping[str, Any]) -> None:
        self._client.log_dict(self._id, dict(values), "summary.json")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _allowed(key: str) -> str:
    """MLflow takes letters, digits, and a few signs, of which `~` is none."""
    return re.sub(r"[^\w\-. /:]", "_", key, flags=re.ASCII)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
