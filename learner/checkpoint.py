"""The learner's part of a checkpoint: weights, optimizer state and random state of every rank.

    DIRECTORY/rank_00000.safetensors, …   each rank's shard of weights and optimizer state, and its random state
    DIRECTORY/learner.json                number of shards, step, and the caller's state; written last

Any number of ranks, at any ZeRO stage, reads them back (see `learner.zero.optimizer_state`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open

from configs.errors import CheckpointError, LearnerError
from learner.zero import DeepSpeedEngine

INFO_FILE = "learner.json"
RNG_CPU, RNG_CUDA = "rng_cpu:state:0", "rng_cuda:state:0"
"""Keys of the generators' states, in the form of a fragment's key."""


def save_checkpoint(engine: DeepSpeedEngine, directory: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; every rank calls it, and returns when it is whole. state: plain JSON values.

    Raises CheckpointError on all ranks when one of them cannot write its part: none is left waiting for it.
    """
    rank = dist.get_rank()

    def write_part() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        engine.write_state(_part(directory, rank), _random_state())

    def write_info() -> None:
        if rank == 0:
            info = {"num_parts": dist.get_world_size(), "num_steps": engine.num_steps, "state": dict(state)}
            (directory / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")

    all_succeed(write_part, f"the learner's state to {directory}")
    all_succeed(write_info, f"the learner's state to {directory}")


def all_succeed(write: Callable[[], None], what: str) -> None:
    """Run `write` on every rank, and return when it has ended on all. Raises CheckpointError on all when it failed
    on one, whatever it raised: a full disk shows itself as OSError, or as an error of safetensors."""
    fault: str | None = None
    try:
        write()
    except Exception as error:  # noqa: BLE001 - raised again below, on every rank
        fault = f"rank {dist.get_rank()}: {type(error).__name__}: {error}"
    faults: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    if told := [entry for entry in faults if entry is not None]:
        raise CheckpointError(f"cannot write {what}: {'; '.join(told)}")


def files_of_rank(directory: Path, rank: int) -> list[Path]:
    """What `save_checkpoint` writes on a rank."""
    return [_part(directory, rank), *([directory / INFO_FILE] if rank == 0 else [])]


def load_checkpoint(engine: DeepSpeedEngine, directory: Path) -> dict[str, Any]:
    """Read a checkpoint and return the caller's state; every rank calls it.

    Raises LearnerError when there is none, it is not whole, or it belongs to another model.
    """
    path = directory / INFO_FILE
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        num_parts, num_steps, state = info["num_parts"], info["num_steps"], info["state"]
    except FileNotFoundError as error:
        raise LearnerError(
            f"cannot resume: {directory} holds no whole learner checkpoint ({path} is missing)"
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LearnerError(f"cannot resume: {path} cannot be read: {error!r}") from error
    engine.read_state([_part(directory, rank) for rank in range(num_parts)], num_steps)
    rank = dist.get_rank()
    if rank < num_parts:  # ranks that were not there before keep the generators that they started with
        _restore_random_state(_part(directory, rank))
    return dict(state)


def _part(directory: Path, rank: int) -> Path:
    return directory / f"rank_{rank:05d}.safetensors"


def _random_state() -> dict[str, torch.Tensor]:
    state = {RNG_CPU: torch.get_rng_state()}
    if torch.cuda.is_available():
        state[RNG_CUDA] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(path: Path) -> None:
    with safe_open(str(path), framework="pt") as file:
        keys = set(file.keys())
        torch.set_rng_state(file.get_tensor(RNG_CPU))
        if RNG_CUDA in keys and torch.cuda.is_available():
            torch.cuda.set_rng_state(file.get_tensor(RNG_CUDA))
