"""The learner's part of a checkpoint: the policy, and the weights, optimizer state and random state of every rank.

    Snapshot.take     every rank, between two steps: copies into host memory
    Snapshot.write    each rank for itself, in any thread, while the next steps are made:
        STATE/rank_00000.safetensors, …   each rank's shard of weights and optimizer state, and its random state
        STATE/learner.json                rank 0: number of shards, step, and the caller's state
        MODEL/                            rank 0: a Hugging Face folder

Any number of ranks, at any ZeRO stage, reads the state back (see `learner.zero.optimizer_state`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from configs.errors import CheckpointError, LearnerError
from learner.export import PretrainedWriter, take_weights
from learner.janus_policy import JanusPolicy
from learner.zero import DeepSpeedEngine, HostCopies, all_succeed

INFO_FILE = "learner.json"
RNG_CPU, RNG_CUDA = "rng_cpu:state:0", "rng_cuda:state:0"
"""Keys of the generators' states, in the form of a fragment's key."""


class Snapshot:
    """One rank's copy of what a checkpoint holds. It may be written in a thread of its own; another one can be taken
    when it is written."""

    def __init__(self, engine: DeepSpeedEngine, policy: JanusPolicy, writer: PretrainedWriter | None) -> None:
        """writer: on rank 0, which writes the model."""
        self._engine = engine
        self._policy = policy
        self._writer = writer
        self._state, self._weights = HostCopies(), HostCopies()
        self._info: dict[str, Any] = {}
        self._in_use = threading.Lock()

    def take(self, state: Mapping[str, Any]) -> None:
        """Copy the learner as it is now; every rank calls it, between two steps. state: plain JSON values.

        Raises CheckpointError on all ranks while the one before is still being written on one of them.
        """
        all_succeed(self._check_not_in_use, "take another checkpoint")
        with self._in_use:
            self._state.take(_with_random_state(self._engine))
            take_weights(self._engine, self._policy, self._weights)
            self._info = {"num_parts": dist.get_world_size(), "num_steps": self._engine.num_steps, "state": dict(state)}

    def write(self, state_directory: Path, model_directory: Path) -> None:
        """Write what this rank has to write: see `files_of_rank` and, on rank 0, `PretrainedWriter.write`.

        Raises CheckpointError.
        """
        with self._in_use:
            with _as_checkpoint_error(f"the learner's state to {state_directory}"):
                self._write_state(state_directory)
            if self._writer is not None:
                with _as_checkpoint_error(f"the model to {model_directory}"):
                    self._writer.write(self._weights.tensors, model_directory)

    def _write_state(self, directory: Path) -> None:
        rank = dist.get_rank()
        directory.mkdir(parents=True, exist_ok=True)
        save_file(self._state.tensors, _part(directory, rank))
        if rank == 0:
            (directory / INFO_FILE).write_text(json.dumps(self._info, indent=2) + "\n", encoding="utf-8")

    def _check_not_in_use(self) -> None:
        if self._in_use.locked():
            raise CheckpointError("the one before is still being written")


@contextmanager
def _as_checkpoint_error(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a full disk shows itself as OSError, or as an error of safetensors
        raise CheckpointError(
            f"cannot write {what}: rank {dist.get_rank()}: {type(error).__name__}: {error}"
        ) from error


def files_of_rank(directory: Path, rank: int) -> list[Path]:
    """What `Snapshot.write` writes for the state on a rank."""
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


def _with_random_state(engine: DeepSpeedEngine) -> Iterator[tuple[str, torch.Tensor]]:
    yield RNG_CPU, torch.get_rng_state()
    if torch.cuda.is_available():
        yield RNG_CUDA, torch.cuda.get_rng_state()
    yield from engine.named_state()


def _restore_random_state(path: Path) -> None:
    with safe_open(str(path), framework="pt") as file:
        keys = set(file.keys())
        torch.set_rng_state(file.get_tensor(RNG_CPU))
        if RNG_CUDA in keys and torch.cuda.is_available():
            torch.cuda.set_rng_state(file.get_tensor(RNG_CUDA))
