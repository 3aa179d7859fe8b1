"""Export of the policy's weights from DeepSpeed: as buckets for the engines, and as a Hugging Face folder.

    DeepSpeedEngine.gathered ─► adapters merged ─┬─► export_buckets ─► WeightBucket, WeightBucket, ...
                                                 └─► save_pretrained ─► starting model + trained weights ─► folder

At ZeRO-3 this needs an all-gather: every rank must make the call and exhaust the iterator. Only rank 0 yields.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from configs.errors import LearnerError
from learner.checkpoint import all_succeed
from learner.janus_policy import JanusPolicy, load_janus
from learner.lora import merged_weight
from learner.zero import DeepSpeedEngine
from rollout.janus_checkpoint import resolve_folder
from rollout.records import WeightBucket
from rollout.weights.buckets import pack_bucket

_GATHER_BYTES = 64 * 2**20
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
"""Tokenizer, templates and configs; not the weights."""


def export_buckets(engine: DeepSpeedEngine, policy: JanusPolicy, bucket_mb: int) -> Iterator[WeightBucket]:
    """All parts of the model that training changes, under their names in the checkpoint; nothing on ranks above 0.

    bucket_mb: size of a bucket in units of 2**20 bytes; a larger parameter has a bucket of its own. One bucket is
    gathered at a time.
    """
    for tensors in _merged(engine, policy, bucket_mb * 2**20):
        if dist.get_rank() == 0:
            yield pack_bucket(tensors)


def _merged(engine: DeepSpeedEngine, policy: JanusPolicy, bucket_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    """`engine.gathered` of the parameters that training changes, with LoRA adapters, if any, merged into them."""
    adapters = policy.adapters()
    factors: dict[str, Tensor] = {}
    for tensors in engine.gathered(
        [
            (f"{name}/{factor}", getattr(layer, factor))
            for name, layer in adapters.items()
            for factor in ("lora_a", "lora_b")
        ],
        _GATHER_BYTES,
    ):
        factors.update((name, tensor.clone()) for name, tensor in tensors)
    for tensors in engine.gathered(policy.named_changing_parameters(), bucket_bytes):
        yield [
            (name, merged_weight(tensor, factors[f"{name}/lora_a"], factors[f"{name}/lora_b"], adapters[name].scale))
            if name in adapters
            else (name, tensor)
            for name, tensor in tensors
        ]


def weight_layout(engine: DeepSpeedEngine, policy: JanusPolicy) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of the tensors of `export_tensors`, in the same order. Not collective."""
    return [
        (name, str(parameter.dtype).removeprefix("torch."), engine.whole_shape(parameter))
        for name, parameter in policy.named_changing_parameters()
    ]


def export_tensors(engine: DeepSpeedEngine, policy: JanusPolicy) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `export_buckets` one by one, on the device. At ZeRO-3 each is a copy, since the gathered tensor is
    freed again. Every rank must exhaust the iterator."""
    for tensors in _merged(engine, policy, _GATHER_BYTES):
        for name, tensor in tensors:
            yield name, tensor.clone() if engine.zero_stage == 3 else tensor


def save_pretrained(
    engine: DeepSpeedEngine,
    policy: JanusPolicy,
    starting_model: str,
    directory: Path,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
) -> None:
    """Write a folder that `from_pretrained` loads: the starting model with the trained weights in it,
    and its tokenizer, chat template, generation config and conversation format.

    It appears whole or not at all: it is written beside `directory`, then renamed, replacing an older
    one. Every rank returns after that. Raises CheckpointError when it cannot be written.
    """
    trained: dict[str, Tensor] = {}
    for tensors in _merged(engine, policy, _GATHER_BYTES):
        if dist.get_rank() == 0:
            trained.update((name, tensor.to("cpu", dtype, copy=True)) for name, tensor in tensors)

    def write() -> None:
        if dist.get_rank() == 0:
            _write_folder(trained, starting_model, directory, dtype, revision)

    all_succeed(write, f"the model to {directory}")


def _write_folder(
    trained: dict[str, Tensor], starting_model: str, directory: Path, dtype: torch.dtype, revision: str | None
) -> None:
    model = load_janus(starting_model, dtype, revision)
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    if unexpected:
        raise LearnerError(f"model {starting_model} has no weights {', '.join(sorted(unexpected))}, which were trained")
    new = directory.with_name(f".{directory.name}.new")
    old = directory.with_name(f".{directory.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    model.save_pretrained(new)
    _copy_small_files(resolve_folder(starting_model, revision), new)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _copy_small_files(source: Path, target: Path) -> None:
    """Copy what stands beside the weights, byte by byte, unless the model has written its own.

    An index names the files of the starting model's weights, which are not copied.
    """
    for pattern in _SMALL_FILES:
        for file in source.glob(pattern):
            if not (target / file.name).exists() and not file.name.endswith(".index.json"):
                shutil.copyfile(file, target / file.name)
