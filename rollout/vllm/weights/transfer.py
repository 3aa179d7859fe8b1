"""Weight updates inside a vLLM worker while it stands still, from a slot in shared memory.

    WeightBucket ─► slot ─► BicotWeightEngine (in every worker) ─► model.load_weights

vLLM drives it: `start_weight_update`, then `update_weights` a bucket, then `finish_weight_update`,
while generation is paused. Slots are mapped, not read, so that the tensor-parallel workers of an
engine share one copy of a bucket.

vLLM's layerwise reload converts the weights of each layer again, since some kernels keep weights in another layout than
the checkpoint. Only the parts of the model that an update holds are reloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from configs.errors import WeightSyncError
from rollout.vllm.weights.stager import Stager
from rollout.weights import unpack_bucket
from rollout.weights.adapters import adapted_module
from rollout.weights.manifest import part_of
from rollout.weights.slots import SlotContents, SlotReader


@dataclass
class TensorUpdate(WeightTransferUpdateInfo):
    """Some tensors of an update, in a slot."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    slot: dict[str, Any]
    """Of `SlotContents`."""


class BicotWeightEngine(WeightTransferEngine[WeightTransferInitInfo, TensorUpdate]):
    """One worker's end of weight sync. What arrives was checked by `rollout.weights.manifest`."""

    init_info_cls = WeightTransferInitInfo
    update_info_cls = TensorUpdate
    _stager: Stager | None = None
    _open_parts: dict[str, torch.nn.Module]
    _slots: SlotReader

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        """Nothing to prepare: groups are joined by the stager."""

    def connect_stager(self, path: str) -> bool:
        """Stage what comes through the socket at `path`. False for a quantized model: converting its weights may take
        the device, on which it samples meanwhile."""
        if self.vllm_config.quant_config is not None:
            return False
        self._stager = Stager(self.model)
        self._stager.connect(path)
        return True

    def swap_staged(self) -> None:
        """Put what was staged in the model's place."""
        if self._stager is None:
            raise RuntimeError("weights are not staged")
        self._stager.swap()

    def start_weight_update(self) -> None:
        self._open_parts, self._slots = {}, SlotReader()

    def receive_weights(self, update_info: TensorUpdate) -> None:
        self._open(update_info.names)
        bucket = self._slots.read(SlotContents(**update_info.slot))
        # Copies: vLLM keeps the tensors of a layer until all have come, and the slot is used again before that.
        self.model.load_weights((name, tensor.clone()) for name, tensor in unpack_bucket(bucket))

    def finish_weight_update(self) -> None:
        for module in self._open_parts.values():
            finalize_layerwise_reload(module, self.model_config)
        self._open_parts, self._slots = {}, SlotReader()

    def shutdown(self) -> None:
        """Nothing to leave."""

    def _open(self, names: list[str]) -> None:
        """Prepare the parts that `names` belong to; vLLM would warn of each layer that gets no weights.

        Adapters belong to none: they are copied to where they lie.
        """
        for part in {part_of(name) for name in names if adapted_module(name) is None} - set(self._open_parts):
            if part is None:  # `WeightManifest.check_tensors` lets no such name through
                raise WeightSyncError(f"an update holds tensors of no part of the engine's model: {names}")
            module = self.model.get_submodule(part.removesuffix("."))
            initialize_layerwise_reload(module)
            self._open_parts[part] = module
