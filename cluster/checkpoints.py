"""The checkpoints of a run.

    checkpoints/step_000050/
        model/      a plain Hugging Face folder: for `rollout.generate`, `from_pretrained`, or another run
        state/      DeepSpeed's own: weights, optimizer, schedule, and the client state below; for resuming

A checkpoint is written under a name that ends in `.partial` and renamed when it is whole.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from cluster.learner_group import LearnerGroup

PREFIX = "step_"
PARTIAL = ".partial"


@dataclass(slots=True)
class Checkpoints:
    """Writes checkpoints into a folder, and keeps the newest `keep_last`."""

    directory: Path
    keep_last: int

    async def save(self, learner: LearnerGroup, step: int) -> Path:
        """Write the checkpoint after `step` optimizer steps; returns its folder. Every rank takes part."""
        final = self.directory / f"{PREFIX}{step:06d}"
        if final.exists():
            return final
        partial = final.with_name(final.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        await learner.save_checkpoint(str(partial / "state"), {"step": step})
        await learner.save_pretrained(str(partial / "model"))
        partial.rename(final)
        self._prune()
        return final

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path for path in self.directory.glob(f"{PREFIX}*") if path.suffix != PARTIAL)

    def _prune(self) -> None:
        for old in self.all()[: -self.keep_last]:
            shutil.rmtree(old)
