"""What gives weights to rollout workers where weight sync is measured, in place of a learner."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch

from cluster.actors.spawning import node_id
from configs.local.ports import free_port
from rollout.records import GroupPlace, TensorInfo, WeightBucket, WeightVersion
from rollout.weights import WeightManifest
from rollout.weights.buckets import view_bucket
from rollout.weights.delta import DeltaBucket, DeltaEncoder, DeltaSummary
from rollout.weights.groups import WeightGroup
from rollout.weights.lending import LentMemory
from rollout.weights.manifest import tensor_bytes

CONCURRENCY_GROUPS: Final = {"pulse": 1}
"""For what must be answered while weights are sent, as the learner's."""


class WeightSource:
    """Stands where a learner's rank 0 would, which holds eight times as much: gives weights for a model, the same bytes
    for every tensor. Its methods are those of `LearnerActor`."""

    def __init__(self, folder: str, bucket_mb: int, on_gpu: bool) -> None:
        manifest = WeightManifest.from_folder(Path(folder))
        trained = ("model.language_model.", "lm_head.")
        self._shapes = {name: shape for name, shape in manifest.shapes.items() if name.startswith(trained)}
        self._bucket_bytes = bucket_mb * 2**20
        self._device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        largest = max(tensor_bytes(shape, "bfloat16") for shape in self._shapes.values())
        values = 0.02 * torch.randn(largest // 2, generator=torch.Generator().manual_seed(0))
        self._values = values.to(self._device, torch.bfloat16)
        self._master: torch.Tensor | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._delta = DeltaEncoder()
        self._lent = LentMemory(self._device)
        self._group: WeightGroup | None = None

    def num_bytes(self) -> int:
        return sum(tensor_bytes(shape, "bfloat16") for shape in self._shapes.values())

    def export_weights(self, version: int) -> Iterator[WeightBucket | int]:
        tensors: list[tuple[str, torch.Tensor]] = []
        size, num_buckets = 0, 0
        for name, tensor in self._tensors():
            tensors.append((name, tensor))
            size += tensor.nbytes
            if size >= self._bucket_bytes:
                yield view_bucket(tensors)
                tensors, size, num_buckets = [], 0, num_buckets + 1
        if tensors:
            yield view_bucket(tensors)
            num_buckets += 1
        yield num_buckets

    def step(self, lr: float) -> None:
        """Move the weights as an optimizer does whose gradients are noise, in float32."""
        if self._master is None or self._optimizer is None:
            self._master = self._values.float().requires_grad_(True)
            self._optimizer = torch.optim.AdamW([self._master], lr=lr, weight_decay=0.0)
        self._master.grad = torch.randn_like(self._master)
        self._optimizer.step()
        self._values = self._master.detach().bfloat16()

    def export_changes(
        self, version: WeightVersion, base: WeightVersion | None
    ) -> Iterator[WeightBucket | DeltaBucket | DeltaSummary]:
        whole = (bucket for bucket in self.export_weights(version.number) if isinstance(bucket, WeightBucket))
        yield from self._delta.encode(version, base, whole)
        yield self._delta.summary

    def node(self) -> str:
        return node_id()

    def free_port(self) -> tuple[str, int]:
        return "127.0.0.1", free_port("127.0.0.1")

    def weight_layout(self) -> Sequence[TensorInfo]:
        return [(name, "bfloat16", shape) for name, shape in self._shapes.items()]

    def join_collective(self, place: GroupPlace) -> None:
        self.abort_collective()
        self._group = WeightGroup(place, self._device, self._lent)
        self._group.meet()

    def send_collective(self, version: int, bucket_bytes: int) -> None:
        if self._group is None:
            raise RuntimeError("no group was joined")
        self._group.send(self._tensors(), self.weight_layout(), bucket_bytes)

    def abort_collective(self) -> None:
        if self._group is not None:
            self._group.abort()

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in self._shapes.items():
            yield name, self._values[: math.prod(shape)].view(shape)
