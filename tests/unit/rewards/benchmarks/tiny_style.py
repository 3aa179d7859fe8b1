"""Style descriptors with random weights, CSD's under the names of its published file, and references of two styles."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

WIDTH, MLP, LAYERS, PATCH, SIDE, EMBEDDED = 128, 96, 2, 8, 32, 24
"""Of CSD; its heads are 64 wide, as CLIP ViT-L/14's."""
ENCODER_EMBEDDED = 20
STYLES = ("Comic", "Pixel Art", "")
"""Of the anime prompts 000, 001 and 002."""


def csd_weights() -> dict[str, Tensor]:
    """Random, under OpenAI's names."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 0.1) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + random(WIDTH), f"{name}.bias": random(WIDTH)}

    weights = {
        "backbone.class_embedding": random(WIDTH),
        "backbone.positional_embedding": random((SIDE // PATCH) ** 2 + 1, WIDTH),
        "backbone.conv1.weight": random(WIDTH, 3, PATCH, PATCH),
        "last_layer_style": random(WIDTH, EMBEDDED),
        "last_layer_content": random(WIDTH, EMBEDDED),
        **norm("backbone.ln_pre"),
        **norm("backbone.ln_post"),
    }
    for layer in range(LAYERS):
        prefix = f"backbone.transformer.resblocks.{layer}"
        weights |= {
            f"{prefix}.attn.in_proj_weight": random(3 * WIDTH, WIDTH),
            f"{prefix}.attn.in_proj_bias": random(3 * WIDTH),
            f"{prefix}.attn.out_proj.weight": random(WIDTH, WIDTH),
            f"{prefix}.attn.out_proj.bias": random(WIDTH),
            f"{prefix}.mlp.c_fc.weight": random(MLP, WIDTH),
            f"{prefix}.mlp.c_fc.bias": random(MLP),
            f"{prefix}.mlp.c_proj.weight": random(WIDTH, MLP),
            f"{prefix}.mlp.c_proj.bias": random(WIDTH),
            **norm(f"{prefix}.ln_1"),
            **norm(f"{prefix}.ln_2"),
        }
    return weights


def save_csd(path: Path) -> Path:
    """As the published checkpoint, of a parallel run."""
    torch.save({"model_state_dict": {f"module.{name}": weight for name, weight in csd_weights().items()}}, path)
    return path


def save_style_encoder(folder: Path) -> Path:
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=ENCODER_EMBEDDED,
        initializer_factor=20.0,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def write_references(folder: Path) -> None:
    """style.csv and the embeddings of both descriptors."""
    folder.mkdir(parents=True)
    rows = [f"{place},00{place},{style}" for place, style in enumerate(STYLES)]
    (folder / "style.csv").write_text("\n".join([",id,class", *rows]) + "\n")
    generator = torch.Generator().manual_seed(2)
    for name, width, dtype in (("CSD", EMBEDDED, torch.float32), ("SE", ENCODER_EMBEDDED, torch.bfloat16)):
        references = {
            style: functional.normalize(torch.randn(3, width, generator=generator), dim=-1).to(dtype)
            for style in ("comic", "pixel_art")
        }
        torch.save(references, folder / f"{name}_embed.pt")
