"""Weights & Biases. `WANDB_MODE=offline` writes to disk only, for `wandb sync` later; its other variables hold, too."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.trackers.protocol import TrackedPicture, TrackedRun


class WandB:
    """A run in the project of WANDB_PROJECT, `bicot` by default. Its id is the run's key, for runs that go on."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        self._image = wandb.Image
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "bicot"),
            name=run.name,
            id=run.key,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        # W&B's own step cannot go back, and a run that goes on makes steps again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def rewind(self, step: int) -> None:
        """Steps that are made again are drawn over the earlier ones."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        images = [self._image(entry.picture, caption=entry.caption) for entry in pictures]
        self._run.log({"samples": images, "step": step})

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update({f"end/{key}": value for key, value in values.items()})

    def close(self) -> None:
        self._run.finish()
