"""Low-rank adapters (LoRA, arXiv:2106.09685). The base model stays frozen, and so is the reference policy, too.

    x ─┬─► base (frozen) ──────────────────────┬─► y = W x + alpha/rank B (A x)
       └─► A [rank, in] ─► B [out, rank] ──────┘       with adapters off: y = W x, the reference

B is initialised to 0, so the policy starts as the base model. Engines and saved models get the merged weights
W + alpha/rank B A, without adapters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from configs.errors import ModelError
from configs.learner_sections import LoraConfig


class LoraLinear(nn.Module):
    """A linear layer with an adapter beside it (LoRA, equation 3)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        """Takes over `base`, and freezes it."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as a new linear layer's weight
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        y: Tensor = self.base(x)
        if not self.is_on:
            return y
        return y + self.scale * nn.functional.linear(nn.functional.linear(x, self.lora_a), self.lora_b)


def merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """W + scale B A, [out, in], in the dtype of W; computed in float32 or better."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(exact) + scale * (lora_b.to(exact) @ lora_a.to(exact))).to(weight.dtype)


def add_adapters(module: nn.Module, config: LoraConfig, seed: int = 0) -> None:
    """Put an adapter beside every linear layer of `module` whose name ends in one of `config.targets`.

    The same on every rank: the start of A comes from a generator of its own. Raises ModelError for a target that no
    layer has.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    for target in config.targets:
        if not any(name.rpartition(".")[2] == target for name, _ in layers):
            raise ModelError(f"learner.lora.targets: the language model has no linear layer named '{target}'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in layers:
            parent, _, own_name = name.rpartition(".")
            if own_name in config.targets:
                setattr(module.get_submodule(parent), own_name, LoraLinear(layer, config.rank, config.alpha))


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Within the context, forward passes of `module` leave its adapters out."""
    layers = [layer for layer in module.modules() if isinstance(layer, LoraLinear)]
    for layer in layers:
        layer.is_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_on = True


def named_adapters(module: nn.Module) -> dict[str, LoraLinear]:
    """Name of the weight in the Hugging Face checkpoint -> the layer that holds it and its adapter."""
    return {f"{name}.weight": layer for name, layer in _adapted(module)}


def checkpoint_names(module: nn.Module) -> dict[str, str]:
    """Name of each parameter of a module with adapters, but for the adapters themselves -> its name without them.

    The latter is the name in the Hugging Face checkpoint: a layer with an adapter holds the original one as `base`.
    """
    moved = {
        f"{name}.base.{parameter}": f"{name}.{parameter}"
        for name, layer in _adapted(module)
        for parameter, _ in layer.base.named_parameters()
    }
    adapters = {f"{name}.{factor}" for name, layer in _adapted(module) for factor in ("lora_a", "lora_b")}
    return {name: moved.get(name, name) for name, _ in module.named_parameters() if name not in adapters}


def _adapted(module: nn.Module) -> list[tuple[str, LoraLinear]]:
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, LoraLinear)]
