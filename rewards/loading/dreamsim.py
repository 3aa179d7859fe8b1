"""DreamSim's ensemble (Fu et al. 2023, arXiv 2306.09344): how far apart people would say that two pictures are.

    pixels of 224 ─┬─► DINO ViT-B/16 ─────► first token of the last layer, before the final norm [768] ─┐
                   ├─► CLIP ViT-B/16 ─────► its projection [512] ───────────────────────────────────────┼─► joined
                   └─► OpenCLIP ViT-B/16 ─► its projection [512] ───────────────────────────────────────┘

    joined ─► minus the mean of its numbers ─► unit length;   distance of two pictures = 1 - cosine, from 0 to 2

The authors' release holds the two CLIPs under DINO's names, and low-rank changes of the three towers' attention, which
are added to the weights here. The authors' own package takes code from GitHub as it starts, and needs torchvision.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection, ViTConfig, ViTModel

from rewards.loading.csd import HEAD_SIZE, infer_config
from rewards.loading.open_clip import convert_state_dict
from rewards.loading.pretrained import fill_model, read_state_dict
from rewards.loading.state_dicts import StateDict, count_layers
from rewards.pictures.preprocessing import Preprocessing, normalize_pixels
from rollout.records import UInt8Array

PARTS: Final = ("dino", "clip", "open_clip")
"""The three towers, in the order in which the low-rank changes number them."""
IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI: Final = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of the colours, of DINO and of both CLIPs."""
DINO_EPS: Final = 1e-6
_LOW_RANK: Final = re.compile(r"extractor_list\.(\d+)\.model\.(.+)\.lora_([AB])\.weight$")
_IN_VIT: Final = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.norm1\.", r"layers.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"layers.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attention.o_proj."),
    (r"^blocks\.(\d+)\.mlp\.", r"layers.\1.mlp."),
    (r"^norm\.", "layernorm."),
)
_IN_OPEN_CLIP: Final = (
    (r"^cls_token$", "visual.class_embedding"),
    (r"^pos_embed$", "visual.positional_embedding"),
    (r"^patch_embed\.proj\.weight$", "visual.conv1.weight"),
    (r"^pos_drop\.", "visual.ln_pre."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"visual.transformer.resblocks.\1.ln_\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"visual.transformer.resblocks.\1.attn.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"visual.transformer.resblocks.\1.attn.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"visual.transformer.resblocks.\1.mlp.c_fc."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"visual.transformer.resblocks.\1.mlp.c_proj."),
    (r"^norm\.", "visual.ln_post."),
    (r"^proj$", "visual.proj"),
)


class DreamSim:
    """The three towers in float32, frozen, on one device."""

    def __init__(self, files: Mapping[str, Path], device: str) -> None:
        """files: of each of PARTS, and of `adapter` and `adapter_config`. Raises OSError or ValueError."""
        changes = read_low_rank(files["adapter"], files["adapter_config"])
        dino, clip, open_clip = (
            add_changes(read_state_dict(str(files[part])), changes.get(index, {}), files[part])
            for index, part in enumerate(PARTS)
        )
        self._dino = _load_dino(dino, str(files["dino"]), device)
        self._clips = (
            _load_clip(clip, str(files["clip"]), "quick_gelu", device),
            _load_clip(open_clip, str(files["open_clip"]), "gelu", device),
        )
        side = self._dino.config.image_size
        self._prepare = Preprocessing(lambda height, width: (side, side), Image.Resampling.BICUBIC, *OPENAI)

    @torch.inference_mode()
    def embed(self, pictures: UInt8Array) -> Tensor:
        """uint8 [B, height, width, 3] to float32 [B, e] of unit length, whose cosine tells how alike two are."""
        pixels = self._prepare.resized(pictures, self._dino.device)
        for_clip = normalize_pixels(pixels, *OPENAI)
        dino = self._dino(pixel_values=normalize_pixels(pixels, *IMAGENET)).last_hidden_state[:, 0]
        joined = torch.cat([dino, *(clip(pixel_values=for_clip).image_embeds for clip in self._clips)], dim=-1)
        return functional.normalize(joined - joined.mean(dim=-1, keepdim=True), dim=-1)


def read_low_rank(path: Path, config_path: Path) -> dict[int, StateDict]:
    """Tower -> name of a weight -> what is added to it: alpha / r · B A. Raises ValueError for another adapter."""
    config = json.loads(config_path.read_text(encoding="utf-8"))
    odd = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
        raise ValueError(f"{config_path} is no plain LoRA {', '.join(odd)}".rstrip())
    pairs: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in read_state_dict(str(path)).items():
        match = _LOW_RANK.search(name)
        if match is None:
            raise ValueError(f"{path}: '{name}' is no low-rank weight of a tower")
        pairs.setdefault((int(match[1]), f"{match[2]}.weight"), {})[match[3]] = tensor.float()
    changes: dict[int, StateDict] = {}
    for (tower, name), pair in pairs.items():
        if set(pair) != {"A", "B"} or len(pair["A"]) != config["r"]:
            raise ValueError(f"{path}: the change of {name} of tower {tower} has not A and B of rank {config['r']}")
        changes.setdefault(tower, {})[name] = config["lora_alpha"] / config["r"] * pair["B"] @ pair["A"]
    return changes


def add_changes(weights: StateDict, changes: StateDict, path: Path) -> StateDict:
    """The weights with what was learned beside them. Raises ValueError where the adapter is another model's."""
    changed = dict(weights)
    for key, change in changes.items():
        if key not in weights or weights[key].shape != change.shape:
            raise ValueError(f"the adapter changes {key} by {tuple(change.shape)}; {path} has no such weight")
        changed[key] = weights[key].float() + change
    return changed


def _load_dino(weights: StateDict, path: str, device: str) -> ViTModel:
    """DINO without its final norm."""
    renamed: StateDict = {}
    for name, tensor in weights.items():
        block = re.match(r"^blocks\.(\d+)\.attn\.qkv\.(\w+)$", name)
        if block:
            stem = f"layers.{block[1]}.attention"
            renamed |= {f"{stem}.{c}_proj.{block[2]}": part for c, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            renamed[_rename(name, _IN_VIT)] = tensor
    width, _, patch_size, _ = _get(renamed, "embeddings.patch_embeddings.projection.weight").shape
    num_positions = _get(renamed, "embeddings.position_embeddings").shape[1]
    config = ViTConfig(
        hidden_size=width,
        intermediate_size=len(_get(renamed, "layers.0.mlp.fc1.weight")),
        num_hidden_layers=count_layers(renamed, "layers"),
        num_attention_heads=max(1, width // HEAD_SIZE),
        image_size=math.isqrt(num_positions - 1) * patch_size,
        patch_size=patch_size,
        layer_norm_eps=DINO_EPS,
    )
    model: Any = fill_model(ViTModel, config, renamed, path, "float32", device, add_pooling_layer=False)
    model.layernorm = nn.Identity()
    return model


def _load_clip(weights: StateDict, path: str, hidden_act: str, device: str) -> CLIPVisionModelWithProjection:
    """A CLIP that is written down as DINO is: its patches have a bias, which CLIP adds with their positions."""
    plain = dict(weights)
    positions = plain["pos_embed"] = _get(plain, "pos_embed")[0].float().clone()
    positions[1:] += _get(plain, "patch_embed.proj.bias").float()
    plain["cls_token"] = _get(plain, "cls_token").flatten()
    del plain["patch_embed.proj.bias"]
    converted = convert_state_dict({_rename(name, _IN_OPEN_CLIP): tensor for name, tensor in plain.items()})
    config = infer_config(converted)
    config.hidden_act = hidden_act
    return fill_model(CLIPVisionModelWithProjection, config, converted, path, "float32", device)


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    raise ValueError(f"'{name}' is no weight of a tower under DINO's names")


def _get(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise ValueError(f"the checkpoint lacks {name}")
    return weights[name]
