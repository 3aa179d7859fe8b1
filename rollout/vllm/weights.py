"""Weight updates inside a vLLM worker, from a file in shared memory or from an NCCL broadcast.

    WeightBucket ─► file in shared memory ─┐
                                           ├─► BicotWeightEngine (in every worker) ─► model.load_weights
    learner rank 0 ── NCCL broadcast ──────┘

vLLM drives it: `start_weight_update`, then `update_weights` a bucket, then `finish_weight_update`,
while generation is paused. A file is mapped, not read, so that the tensor-parallel workers of an
engine share one copy of it.

vLLM's layerwise reload converts the weights of each layer again, since some kernels keep weights in another layout than
the checkpoint. Only the parts of the model that an update holds are reloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from configs.errors import WeightSyncError
from rollout.records import WeightBucket
from rollout.weights import unpack_bucket
from rollout.weights.manifest import part_of

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine


@dataclass
class CollectiveInit(WeightTransferInitInfo):
    """Where an engine's workers join the learner's NCCL group; the learner's rank 0 is rank 0 of it."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int


@dataclass
class TensorUpdate(WeightTransferUpdateInfo):
    """Some tensors of an update: in the file at `path`, or, without one, in the collective's next broadcasts."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    path: str | None = None


class BicotWeightEngine(WeightTransferEngine[CollectiveInit, TensorUpdate]):
    """One worker's end of weight sync. What arrives was checked by `rollout.weights.manifest`."""

    init_info_cls = CollectiveInit
    update_info_cls = TensorUpdate
    _collective: NCCLWeightTransferEngine | None = None
    _open_parts: dict[str, torch.nn.Module]

    def init_transfer_engine(self, init_info: CollectiveInit) -> None:
        """Join (or join anew) the learner's NCCL group; not needed for files."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferInitInfo

        self.shutdown()
        collective = NCCLWeightTransferEngine(self.config, self.vllm_config, self.device, self.model)
        collective.init_transfer_engine(
            NCCLWeightTransferInitInfo(
                master_address=init_info.master_address,
                master_port=init_info.master_port,
                rank_offset=init_info.rank_offset,
                world_size=init_info.world_size,
                packed=True,
            )
        )
        self._collective = collective

    def start_weight_update(self) -> None:
        self._open_parts = {}

    def receive_weights(self, update_info: TensorUpdate) -> None:
        self._open(update_info.names)
        if update_info.path is not None:
            self.model.load_weights(unpack_bucket(_map_bucket(update_info, update_info.path)))
            return
        if self._collective is None:
            raise RuntimeError("the collective was not initialised")
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

        self._collective.receive_weights(
            NCCLWeightTransferUpdateInfo(
                names=update_info.names, dtype_names=update_info.dtype_names, shapes=update_info.shapes
            )
        )

    def finish_weight_update(self) -> None:
        for module in self._open_parts.values():
            finalize_layerwise_reload(module, self.model_config)
        self._open_parts = {}

    def shutdown(self) -> None:
        if self._collective is not None:
            self._collective.shutdown()
            self._collective = None

    def _open(self, names: list[str]) -> None:
        """Prepare the parts that `names` belong to; vLLM would warn of each layer that gets no weights."""
        for part in {part_of(name) for name in names} - set(self._open_parts):
            if part is None:  # `WeightManifest.check_tensors` lets no such name through
                raise WeightSyncError(f"an update holds tensors of no part of the engine's model: {names}")
            module = self.model.get_submodule(part.removesuffix("."))
            initialize_layerwise_reload(module)
            self._open_parts[part] = module


def _map_bucket(update: TensorUpdate, path: str) -> WeightBucket:
    return WeightBucket(
        names=tuple(update.names),
        dtypes=tuple(update.dtype_names),
        shapes=tuple(map(tuple, update.shapes)),
        data=np.memmap(path, dtype=np.uint8, mode="r"),
    )
