"""TensorBoard by tensorboardX, without PyTorch or TensorFlow; see it by `tensorboard --logdir RUN/trackers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from cluster.trackers.protocol import TrackedPicture, TrackedRun


class TensorBoard:
    """Writes event files below `run.folder`. A run that goes on writes another file, which hides the steps that are
    made again."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboardX import SummaryWriter

        self._make_writer = SummaryWriter
        self._folder = str(run.folder / "tensorboard")
        self._config = yaml.safe_dump(dict(run.config), sort_keys=False)
        self._writer: Any = None

    def rewind(self, step: int) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = self._make_writer(self._folder, purge_step=step + 1 if step else None)
        self._writer.add_text("config", f"```yaml\n{self._config}```")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        writer = self._open()
        for key, value in values.items():
            writer.add_scalar(key.replace("~", "_vs_"), value, step)
        writer.flush()

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        writer = self._open()
        stack = np.stack([entry.picture for entry in pictures])
        writer.add_images("samples", stack, step, dataformats="NHWC")
        captions = "\n".join(f"{number}. {entry.caption}" for number, entry in enumerate(pictures, start=1))
        writer.add_text("samples/captions", captions, step)
        writer.flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        self._open().add_text("summary", f"```yaml\n{yaml.safe_dump(dict(values), sort_keys=False)}```")

    def close(self) -> None:
        self._open().close()

    def _open(self) -> Any:
        if self._writer is None:
            self.rewind(0)
        return self._writer
