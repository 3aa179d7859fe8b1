"""The names and shapes of an engine's tensors, and the check that a weight update fits them.

An update is checked as a whole before the first tensor is loaded: an engine with half of an update can no longer
sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ModelError, WeightSyncError
from rollout.records import WeightBucket

ENGINE_PARTS = (
    "model.language_model.",
    "lm_head.",
    "model.generation_embeddings.",
    "model.generation_aligner.",
    "model.generation_head.",
)
"""Name prefixes of what an engine runs of a Janus checkpoint: no vision and no VQ model."""

_BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2}


def part_of(name: str) -> str | None:
    """The prefix in ENGINE_PARTS that a parameter belongs to, or None."""
    return next((part for part in ENGINE_PARTS if name.startswith(part)), None)


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Names and shapes of an engine's parameters, as in the checkpoint."""

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def from_folder(cls, folder: Path) -> WeightManifest:
        """Read the headers of a checkpoint's safetensors files. Raises ModelError."""
        from safetensors import SafetensorError, safe_open

        shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="np") as tensors:
                    for name in filter(part_of, tensors.keys()):
                        shapes[name] = tuple(tensors.get_slice(name).get_shape())
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path} cannot be read: {error}") from error
        missing = [part for part in ENGINE_PARTS if not any(name.startswith(part) for name in shapes)]
        if missing:
            raise ModelError(f"model {folder}: its *.safetensors files hold no tensor {missing[0]}*")
        return cls(shapes)

    def check_buckets(self, buckets: Sequence[WeightBucket]) -> None:
        """Raises WeightSyncError, naming the tensor, unless the buckets together fit the engine."""
        for bucket in buckets:
            _check_bytes(bucket)
        self.check_tensors([(n, s, d) for b in buckets for n, s, d in zip(b.names, b.shapes, b.dtypes, strict=True)])

    def check_tensors(self, tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> None:
        """The same for (name, shape, dtype) of every tensor of an update.

        A part (see ENGINE_PARTS) comes whole or not at all: vLLM rebuilds a layer from all its
        tensors, and would take memory's old contents for one that is missing.
        """
        seen: set[str] = set()
        for name, shape, dtype in tensors:
            if name not in self.shapes:
                raise WeightSyncError(f"tensor '{name}' is no parameter of the engine's model")
            if name in seen:
                raise WeightSyncError(f"tensor '{name}' comes twice in one update")
            if tuple(shape) != self.shapes[name]:
                raise WeightSyncError(f"tensor '{name}' has shape {tuple(shape)}, the engine's has {self.shapes[name]}")
            if dtype not in _BYTES_PER_VALUE:
                raise WeightSyncError(f"tensor '{name}' has dtype {dtype}; float32 and bfloat16 can be loaded")
            seen.add(name)
        if not seen:
            raise WeightSyncError("the update holds no tensor")
        parts = {part_of(name) for name in seen}
        for name in self.shapes:
            if name not in seen and part_of(name) in parts:
                raise WeightSyncError(f"tensor '{name}' is missing; '{part_of(name)}*' can only be updated as a whole")


def tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Size of a tensor in a WeightBucket."""
    return math.prod(shape) * _BYTES_PER_VALUE[dtype]


def _check_bytes(bucket: WeightBucket) -> None:
    unknown = [(n, d) for n, d in zip(bucket.names, bucket.dtypes, strict=True) if d not in _BYTES_PER_VALUE]
    if unknown:
        name, dtype = unknown[0]
        raise WeightSyncError(f"tensor '{name}' has dtype {dtype}; float32 and bfloat16 can be loaded")
    expected = sum(tensor_bytes(s, d) for s, d in zip(bucket.shapes, bucket.dtypes, strict=True))
    if bucket.data.nbytes != expected:
        raise WeightSyncError(
            f"the bucket from tensor '{bucket.names[0]}' holds {bucket.data.nbytes} bytes, its shapes need {expected}"
        )
