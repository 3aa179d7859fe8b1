"""What resuming needs on disk: DeepSpeed's own files, and beside them what they were written with.

    DIRECTORY/deepspeed/…     one part a rank: weights, optimizer state, client state
    DIRECTORY/learner.json    CheckpointInfo, written last: without it the checkpoint is not whole

DeepSpeed reads its parts back only at the same ZeRO stage and number of ranks, and fails in obscure
ways otherwise; so that is compared first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from configs.errors import LearnerError
from configs.schema import RunConfig
from learner.deepspeed_engine import DeepSpeedEngine

INFO_FILE = "learner.json"


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """Settings that a checkpoint is bound to. Names are those of the config's fields."""

    num_ranks: int
    zero_stage: int
    dtype: str

    @classmethod
    def of(cls, config: RunConfig) -> CheckpointInfo:
        return cls(config.learner.num_ranks, config.learner.zero_stage, config.model.dtype)


def save_checkpoint(
    engine: DeepSpeedEngine, info: CheckpointInfo, directory: Path, client_state: Mapping[str, Any]
) -> None:
    """Write a checkpoint; every rank calls it, and returns when it is whole."""
    engine.save_checkpoint(directory, client_state)
    dist.barrier()
    if dist.get_rank() == 0:
        (directory / INFO_FILE).write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    dist.barrier()


def load_checkpoint(engine: DeepSpeedEngine, info: CheckpointInfo, directory: Path) -> dict[str, Any]:
    """Read a checkpoint and return its client state; every rank calls it.

    Raises LearnerError when there is none, it is not whole, or it was written with other settings.
    """
    path = directory / INFO_FILE
    try:
        found = CheckpointInfo(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise LearnerError(
            f"cannot resume: {directory} holds no whole learner checkpoint ({path} is missing)"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise LearnerError(f"cannot resume: {path} cannot be read: {error}") from error
    for field in ("num_ranks", "zero_stage", "dtype"):
        was, now = getattr(found, field), getattr(info, field)
        if was != now:
            section = "model" if field == "dtype" else "learner"
            raise LearnerError(
                f"cannot resume from {directory}: it was written with {section}.{field} {was}, the config says {now}; "
                f"set {section}.{field} to {was}"
            )
    return engine.load_checkpoint(directory)
