"""trackio: keeps runs in a local database (TRACKIO_DIR), and shows them by `trackio show`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.trackers.protocol import TrackedPicture, TrackedRun


class Trackio:
    """A run in the project of TRACKIO_PROJECT, `bicot` by default. Its name is the run's key, so a resumed run goes on
    in it."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._trackio: Any = trackio
        project = os.environ.get("TRACKIO_PROJECT", "bicot")
        self._run: Any = trackio.init(
            project=project, name=run.key, config=dict(run.config), resume="allow", embed=False
        )

    def rewind(self, step: int) -> None:
        """Steps that are made again are drawn over the earlier ones."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        images = [self._trackio.Image(entry.picture, caption=entry.caption) for entry in pictures]
        self._run.log({f"samples/{number}": image for number, image in enumerate(images)}, step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        numbers = {f"end/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        self._run.log(numbers)

    def close(self) -> None:
        self._run.finish()
