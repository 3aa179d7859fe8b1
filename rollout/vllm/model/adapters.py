"""LoRA adapters beside the linear layers of the engine's model, unmerged.

vLLM joins q, k and v, and gate and up, into one product each. So do their adapters: the A of a joined layer stand one
above the other, its B on the diagonal of one matrix, and the whole is one small product after another.

    x [T, in] ─┬─► W [out, in] ─────────────────────────────────────────────────┬─► y
               └─► A [n rank, in] ─► scale ─► B [out, n rank], block-diagonal ──┘

Why not vLLM's own LoRA: it adds the change to a result that is already rounded, which loses small changes in bfloat16
(`rollout.weights.adapters`); it binds a request to one adapter, where here running requests go on with new ones; and
its kernels map rows to requests, of which this model has several for each token.

Under tensor parallelism a rank has the rows of B whose outputs it computes (of a layer split by outputs), or the
columns of A whose inputs it has (of a layer split by inputs).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

from configs.learner_sections import LoraConfig
from rollout.weights.adapters import adapted_module, adapter_change, is_lora_a, summed_product

_JOINED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
"""Name of a layer in vLLM's model -> the layers of the checkpoint that it joins, in the order of its outputs."""
_SPLIT_BY_INPUTS = ("o_proj", "down_proj")


def _adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scale: float
) -> Tensor:
    """[T, out] of [T, in]; see `rollout.weights.adapters.linear_and_change`."""
    y = summed_product(adapter_change(x, lora_a, lora_b, scale), x, weight)
    return y if bias is None else y + bias


# To torch.compile it is one operation: it would take the sum out of the product, to fuse it with what comes after.
_compiled = torch.library.custom_op("bicot::adapted_linear", _adapted_linear, mutates_args=())


@_compiled.register_fake
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


class AdaptedLinearMethod(UnquantizedLinearMethod):
    """How a vLLM layer with adapters computes. Its weight stays as it was loaded: vLLM would pack it on a CPU."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        pass

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        linear = _compiled if torch.compiler.is_compiling() else _adapted_linear
        y: Tensor = linear(x, layer.weight, bias, layer.lora_a, layer.lora_b, self._scale)
        return y


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the adapter of one layer of the checkpoint lies in a layer of vLLM's."""

    layer: Any
    columns: slice
    """Of the joined B, and rows of the joined A."""
    rows: slice
    """Of the joined B."""
    part: int
    """Which part of the whole this rank has: of the outputs, or, of a layer split by inputs, of the inputs."""
    split_by_inputs: bool

    def load(self, name: str, tensor: Tensor) -> None:
        """Copy this rank's part of A or B, in place: captured graphs read the same memory."""
        is_a = is_lora_a(name)
        target = self.layer.lora_a[self.columns] if is_a else self.layer.lora_b[self.rows, self.columns]
        if is_a == self.split_by_inputs:
            split = 1 if is_a else 0
            tensor = tensor.narrow(split, self.part * target.shape[split], target.shape[split])
        target.copy_(tensor)


class Adapters:
    """The adapters of a model whose parameters are named as in the checkpoint."""

    def __init__(self, model: nn.Module, lora: LoraConfig) -> None:
        """Put them beside the layers that `lora.targets` names, all 0: the model stays what it is."""
        self._places: dict[str, _Place] = {}
        for name, layer in model.named_modules():
            parent, _, own_name = name.rpartition(".")
            if isinstance(layer, LinearBase) and own_name in _JOINED:
                for original, place in _add(layer, own_name, lora):
                    self._places[f"{parent}.{original}"] = place

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Load the adapters among `weights`, and hand on what is none."""
        for name, tensor in weights:
            module = adapted_module(name)
            if module is None:
                yield name, tensor
            else:
                self._places[module].load(name, tensor)


class StagedAdapters:
    """New adapters that wait beside those that sample."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self._waiting: list[tuple[str, Tensor]] = []

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Keep copies of the adapters among `weights`, and hand on what is none."""
        for name, tensor in weights:
            if adapted_module(name) is None:
                yield name, tensor
            else:
                self._waiting.append((name, tensor.clone()))

    def swap_in(self) -> None:
        """They take the place of those that sample. Nothing may be computed meanwhile."""
        for _ in self._adapters.take(self._waiting):
            pass
        self._waiting = []


def _add(layer: Any, own_name: str, lora: LoraConfig) -> Iterator[tuple[str, _Place]]:
    targets = [(part, name) for part, name in enumerate(_JOINED[own_name]) if name in lora.targets]
    if not targets:
        return
    width, weight = lora.rank * len(targets), layer.weight
    # Not persistent: no checkpoint has them. Buffers, unlike weights, outlive vLLM's deepest sleep.
    for name, shape in (("lora_a", (width, weight.shape[1])), ("lora_b", (weight.shape[0], width))):
        layer.register_buffer(name, torch.zeros(shape, dtype=weight.dtype, device=weight.device), persistent=False)
    layer.quant_method = AdaptedLinearMethod(lora.scale)
    sizes = layer.output_partition_sizes
    for block, (part, name) in enumerate(targets):
        first = sum(sizes[:part])
        replicas = layer.num_kv_head_replicas if name in ("k_proj", "v_proj") else 1
        yield (
            name,
            _Place(
                layer,
                columns=slice(block * lora.rank, (block + 1) * lora.rank),
                rows=slice(first, first + sizes[part]),
                part=layer.tp_rank // replicas,
                split_by_inputs=own_name in _SPLIT_BY_INPUTS,
            ),
        )
