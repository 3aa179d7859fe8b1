"""Low-rank adapters (LoRA, arXiv:2106.09685) beside the linear layers of the language model: layer, names, shapes.

    x ─┬─► A [rank, in] ─► scale ─► B [out, rank] ─► change ─┐
       └─► W [out, in], frozen ──────────────────────────────┴─► y = W x + scale B (A x), rounded once

B is initialised to 0, so a policy starts as its base model.

Why the change goes into the sum of the large product, and is not added to its result: in bfloat16 that result lies on a
grid of 8 significant bits, and a change below half a step of the grid is rounded away again. At a learning rate of
1e-6 that loses 98 % of the first ten steps, and so does merging the adapters into bfloat16 weights. Within the sum,
which is float32, a small change decides how some of the results are rounded, in proportion to its size.

A CPU's `addmm` sums in float32. On a GPU it showed what rounding the product first does (H200, torch 2.11): there the
product is asked for in float32, and one more kernel sums and rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import ModelError
from configs.learner_sections import LoraConfig

_A, _B = ".lora_A.weight", ".lora_B.weight"
"""Ends of the names under which adapters travel and are saved, as in PEFT."""


def adapter_names(module: str) -> tuple[str, str]:
    """Names of A and B of the linear layer `module`, which is named as in the Hugging Face checkpoint."""
    return module + _A, module + _B


def adapted_module(name: str) -> str | None:
    """The linear layer that a tensor of this name is an adapter's of; None where it is no adapter's."""
    return next((name.removesuffix(end) for end in (_A, _B) if name.endswith(end)), None)


def is_lora_a(name: str) -> bool:
    """Whether an adapter's tensor of this name is its A."""
    return name.endswith(_A)


def adapter_shapes(shapes: Mapping[str, tuple[int, ...]], lora: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of all adapters of a model.

    shapes: those of the base model's parameters, by their names in the checkpoint.
    """
    adapters: dict[str, tuple[int, ...]] = {}
    for weight, shape in shapes.items():
        module = weight.removesuffix(".weight")
        if weight.startswith("model.language_model.layers.") and module.rpartition(".")[2] in lora.targets:
            lora_a, lora_b = adapter_names(module)
            adapters |= {lora_a: (lora.rank, shape[1]), lora_b: (shape[0], lora.rank)}
    return adapters


def adapter_change(x: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """scale B (A x), [..., out] of [..., in]."""
    return nn.functional.linear(scale * nn.functional.linear(x, lora_a), lora_b)


def linear_and_change(x: Tensor, weight: Tensor, bias: Tensor | None, change: Tensor) -> Tensor:
    """W x + change + bias, [..., out] of [..., in]; product and change are summed before they are rounded."""
    rows = _SummedProduct.apply(x.reshape(-1, x.shape[-1]), weight, change.reshape(-1, change.shape[-1]))
    y: Tensor = rows.view_as(change)
    return y if bias is None else y + bias


def summed_product(change: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """change [N, out] + x [N, in] Wᵀ, all of one dtype, rounded once. Not differentiable."""
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
        return rounded_sum(torch.mm(x, weight.t(), out_dtype=torch.float32), change)
    return torch.addmm(change, x, weight.t())


def rounded_sum(product: Tensor, change: Tensor) -> Tensor:
    """Of a float32 product and a change of fewer bits, in the latter's dtype."""
    return torch.add(product, change, out=torch.empty_like(change))


class _SummedProduct(torch.autograd.Function):
    """change + x Wᵀ with a frozen W, which is all that it keeps for the backward pass: of W as it is, not of a view,
    so that ZeRO-3 may take it away in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, change: Tensor) -> Tensor:
        """x: [N, in]; weight: [out, in]; change: [N, out]."""
        ctx.save_for_backward(weight)
        return summed_product(change, x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ weight, None, gradient


class _Base(nn.Module):
    """The frozen linear layer under an adapter; a module of its own, because ZeRO-3 gathers weights by modules."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.requires_grad_(False)

    def forward(self, x: Tensor, change: Tensor | None) -> Tensor:
        if change is None:
            return nn.functional.linear(x, self.weight, self.bias)
        return linear_and_change(x, self.weight, self.bias, change)


class LoraLinear(nn.Module):
    """A linear layer with an adapter beside it (LoRA, equation 3)."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        """Takes over the parameters of `layer`, and freezes them."""
        super().__init__()
        self.base = _Base(layer)
        self.scale = scale
        self.lora_a = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as a new linear layer's weight
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        change = adapter_change(x, self.lora_a, self.lora_b, self.scale) if self.is_on else None
        y: Tensor = self.base(x, change)
        return y


def add_adapters(module: nn.Module, lora: LoraConfig, seed: int = 0) -> None:
    """Put an adapter beside every linear layer of `module` whose name ends in one of `lora.targets`.

    The same on every rank: the start of A comes from a generator of its own. Raises ModelError for a target that no
    layer has.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    for target in lora.targets:
        if not any(name.rpartition(".")[2] == target for name, _ in layers):
            raise ModelError(f"learner.lora.targets: the language model has no linear layer named '{target}'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in layers:
            parent, _, own_name = name.rpartition(".")
            if own_name in lora.targets:
                setattr(module.get_submodule(parent), own_name, LoraLinear(layer, lora.rank, lora.scale))


def named_adapters(module: nn.Module) -> dict[str, LoraLinear]:
    """Name of each linear layer with an adapter -> that layer; names as in the Hugging Face checkpoint."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLinear)}


def adapter_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of all adapters of `module`, by the names under which they travel, A before B."""
    return {
        name: parameter
        for path, layer in named_adapters(module).items()
        for name, parameter in zip(adapter_names(path), (layer.lora_a, layer.lora_b), strict=True)
    }
