"""A small random DreamSim, in the files and under the names of the authors' release."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, LAYERS, PATCH, SIDE, EMBEDDED, RANK, ALPHA = 128, 12, 56, 224, 24, 4, 6


def tower_weights(seed: int, is_clip: bool, width: int = WIDTH, layers: int = LAYERS) -> dict[str, Tensor]:
    """One tower under DINO's names, each weight large enough to count; a CLIP's has a norm and a projection more."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * np.float32(std))

    def linear(name: str, num_in: int, num_out: int) -> dict[str, Tensor]:
        return {f"{name}.weight": normal(num_out, num_in, std=num_in**-0.5), f"{name}.bias": normal(num_out, std=0.1)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + normal(width, std=0.2), f"{name}.bias": normal(width, std=0.2)}

    weights = {
        "cls_token": normal(1, 1, width, std=1.0),
        "pos_embed": normal(1, 1 + (SIDE // PATCH) ** 2, width, std=0.5),
        "patch_embed.proj.weight": normal(width, 3, PATCH, PATCH, std=0.02),
        "patch_embed.proj.bias": normal(width, std=0.0 if is_clip else 0.2),
        **norm("norm"),
    }
    for layer in range(layers):
        prefix = f"blocks.{layer}"
        weights |= norm(f"{prefix}.norm1") | norm(f"{prefix}.norm2")
        weights |= linear(f"{prefix}.attn.qkv", width, 3 * width) | linear(f"{prefix}.attn.proj", width, width)
        weights |= linear(f"{prefix}.mlp.fc1", width, 4 * width) | linear(f"{prefix}.mlp.fc2", 4 * width, width)
    if is_clip:
        weights |= norm("pos_drop") | {"proj": normal(width, EMBEDDED, std=width**-0.5)}
    return weights


def adapter_weights(width: int = WIDTH, layers: int = LAYERS) -> dict[str, Tensor]:
    """Low-rank changes of the attention of all three towers."""
    rng = np.random.default_rng(9)
    weights = {}
    for tower in range(3):
        for layer in range(layers):
            stem = f"base_model.model.extractor_list.{tower}.model.blocks.{layer}.attn.qkv"
            for letter, shape in (("A", (RANK, width)), ("B", (3 * width, RANK))):
                values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
                weights[f"{stem}.lora_{letter}.weight"] = torch.from_numpy(values)
    return weights


def save_dreamsim(folder: Path, width: int = WIDTH, layers: int = LAYERS) -> Path:
    """Write the release with its three towers, and DINO's file where torch.hub puts it; returns the folder."""
    (folder / "ensemble_lora").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    torch.save(tower_weights(1, False, width, layers), folder / "checkpoints" / "dino_vitbase16_pretrain.pth")
    for seed, name in ((2, "clip"), (3, "open_clip")):
        content = {"state_dict": tower_weights(seed, True, width, layers)}
        torch.save(content, folder / f"{name}_vitb16_pretrain.pth.tar")
    save_file(adapter_weights(width, layers), folder / "ensemble_lora" / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.3,
        "bias": "none",
        "target_modules": ["qkv"],
    }
    (folder / "ensemble_lora" / "adapter_config.json").write_text(json.dumps(config))
    return folder
