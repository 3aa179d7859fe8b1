"""The names and shapes of an engine's tensors, and the check that a weight update fits them.

An update is checked as a whole before the first tensor is loaded: an engine with half of an update can no longer
sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ModelError, WeightSyncError
from configs.learner_sections import LoraConfig
from rollout.records import WeightBucket
from rollout.weights.adapters import adapter_shapes

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

    def of_updates(self, lora: LoraConfig | None) -> WeightManifest:
        """That of what weight updates may hold: with `lora` the adapters alone, all of them."""
        return self if lora is None else WeightManifest(adapter_shapes(self.shapes, lora))

    def check_buckets(self, buckets: Iterable[WeightBucket]) -> None:
        """Raises WeightSyncError, naming the tensor, unless the buckets together fit the engine."""
        check = UpdateCheck(self)
        for bucket in buckets:
            check.add(bucket)
        check.finish()

    def check_tensors(self, tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> None:
        """The same for (name, shape, dtype) of every tensor of an update."""
        check = UpdateCheck(self)
        for name, shape, dtype in tensors:
            check.add_tensor(name, shape, dtype)
        check.finish()


class UpdateCheck:
    """Checks an update while it arrives.

    A part (see ENGINE_PARTS) comes whole or not at all: vLLM rebuilds a layer from all its tensors, and would take
    memory's old contents for one that is missing.
    """

    def __init__(self, manifest: WeightManifest) -> None:
        self._shapes = manifest.shapes
        self._seen: set[str] = set()

    def add(self, bucket: WeightBucket) -> None:
        """Raises WeightSyncError, naming the tensor, for one that does not fit."""
        for name, dtype, shape, array in zip(bucket.names, bucket.dtypes, bucket.shapes, bucket.arrays, strict=True):
            self.add_tensor(name, shape, dtype)
            if array.nbytes != tensor_bytes(shape, dtype):
                raise WeightSyncError(
                    f"tensor '{name}' has {array.nbytes} bytes, its shape needs {tensor_bytes(shape, dtype)}"
                )

    def add_tensor(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """The same for a tensor whose bytes are not here."""
        if name not in self._shapes:
            raise WeightSyncError(f"tensor '{name}' is no parameter of the engine's model")
        if name in self._seen:
            raise WeightSyncError(f"tensor '{name}' comes twice in one update")
        if tuple(shape) != self._shapes[name]:
            raise WeightSyncError(f"tensor '{name}' has shape {tuple(shape)}, the engine's has {self._shapes[name]}")
        if dtype not in _BYTES_PER_VALUE:
            raise WeightSyncError(f"tensor '{name}' has dtype {dtype}; float32 and bfloat16 can be loaded")
        self._seen.add(name)

    def finish(self) -> None:
        """Raises WeightSyncError when something is missing."""
        if not self._seen:
            raise WeightSyncError("the update holds no tensor")
        parts = {part_of(name) for name in self._seen}
        for name in self._shapes:
            if name not in self._seen and part_of(name) in parts:
                raise WeightSyncError(f"tensor '{name}' is missing; '{part_of(name)}*' can only be updated as a whole")


def tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Size of a tensor in a WeightBucket."""
    return math.prod(shape) * _BYTES_PER_VALUE[dtype]
