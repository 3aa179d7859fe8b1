"""What a learner does with adapters (`rollout.weights.adapters`): switches them off for the reference, leaves them out
of names, and merges or saves them where a model is written.

Engines get the adapters as they are; a model that is saved as one folder has W + alpha/rank B A in the place of W,
rounded to its dtype, and the adapters beside it in PEFT's format, which are exact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from configs.learner_sections import LoraConfig
from rollout.weights.adapters import LoraLinear, adapter_names, named_adapters


def merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """W + scale B A, [out, in], in the dtype of W; computed in float32 or better, rounded once, to the nearest."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(exact) + scale * (lora_b.to(exact) @ lora_a.to(exact))).to(weight.dtype)


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


def checkpoint_names(module: nn.Module) -> dict[str, str]:
    """Name of each parameter of a module with adapters, but for the adapters themselves -> its name without them.

    The latter is the name in the Hugging Face checkpoint: a layer with an adapter holds the original one as `base`.
    """
    adapted = named_adapters(module)
    moved = {
        f"{name}.base.{parameter}": f"{name}.{parameter}"
        for name, layer in adapted.items()
        for parameter, _ in layer.base.named_parameters()
    }
    adapters = {f"{name}.{factor}" for name in adapted for factor in ("lora_a", "lora_b")}
    return {name: moved.get(name, name) for name, _ in module.named_parameters() if name not in adapters}


@dataclass(frozen=True, slots=True)
class PeftFormat:
    """How adapters are saved: beside a model that they are merged into, as `peft.PeftModel.from_pretrained` loads them.

    Adapters are given by the names of `rollout.weights.adapters`, on the CPU.
    """

    lora: LoraConfig
    base_model: str
    """Folder or hub id of the model that training began with."""
    revision: str | None = None
    """Of the hub id."""

    def merged(self, weight: Tensor, adapters: Mapping[str, Tensor], module: str) -> Tensor:
        """The weight of the layer `module`, [out, in], with its adapter in it."""
        lora_a, lora_b = (adapters[name] for name in adapter_names(module))
        return merged_weight(weight, lora_a, lora_b, self.lora.scale)

    def save(self, folder: Path, adapters: Mapping[str, Tensor]) -> None:
        """Write them."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in adapters.items()}
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        settings = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": self.base_model,
            "revision": self.revision,
            "r": self.lora.rank,
            "lora_alpha": self.lora.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            # The names alone would also match layers of the vision model.
            "target_modules": rf"model\.language_model\.layers\..*\.({'|'.join(map(re.escape, self.lora.targets))})",
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
