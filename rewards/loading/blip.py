"""The towers of BLIP's own code (ViT of timm, BERT of `med.py`) as transformers' BlipVisionModel and BlipTextModel.

    cls_token [1, 1, d], pos_embed [1, 1 + N, d]   ─►  embeddings.class_embedding, .position_embedding
    patch_embed.proj, norm                         ─►  embeddings.patch_embedding, post_layernorm
    blocks.N.attn.qkv, .attn.proj, .norm1, …       ─►  encoder.layers.N.self_attn.qkv, .projection, .layer_norm1, …

The names of the text tower are the same in both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig

from rewards.loading.state_dicts import StateDict, count_layers

HEAD_SIZE = 64
"""Of both towers, in every BLIP; the shapes of a checkpoint do not tell it."""
VISION_NORM_EPS = 1e-6
"""timm's; transformers' own default for BLIP is 1e-5."""

_VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_IN_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_BLOCK = re.compile(r"^blocks\.(\d+)\.(.+)\.(weight|bias)$")
_NOT_WEIGHTS = {"embeddings.position_ids"}


def split_by_prefix(weights: Mapping[str, Tensor], prefix: str) -> StateDict:
    """The weights under a prefix, without it. Raises ValueError when there is none."""
    found = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if not found:
        raise ValueError(f"the checkpoint holds nothing under {prefix}")
    return found


def convert_vision(original: Mapping[str, Tensor]) -> StateDict:
    """The weights under the names of BlipVisionModel. Raises ValueError for a name that is not of BLIP's ViT."""
    converted: StateDict = {}
    for name, tensor in original.items():
        block = _BLOCK.match(name)
        if name in _VISION_NAMES:
            converted[_VISION_NAMES[name]] = tensor
        elif block is not None and block[2] in _IN_BLOCK:
            converted[f"encoder.layers.{block[1]}.{_IN_BLOCK[block[2]]}.{block[3]}"] = tensor
        else:
            raise ValueError(f"'{name}' is no weight of BLIP's vision tower")
    return converted


def convert_text(original: Mapping[str, Tensor]) -> StateDict:
    """The weights of BlipTextModel: those of the original, without its buffers."""
    return {name: tensor for name, tensor in original.items() if name not in _NOT_WEIGHTS}


def infer_vision_config(weights: Mapping[str, Tensor]) -> BlipVisionConfig:
    """The config of converted weights, from their shapes. Raises ValueError when one is missing."""
    try:
        width, _, patch_size, _ = weights["embeddings.patch_embedding.weight"].shape
        num_positions = weights["embeddings.position_embedding"].shape[1]
        mlp_width = len(weights["encoder.layers.0.mlp.fc1.weight"])
    except KeyError as error:
        raise ValueError(f"the vision tower lacks {error}") from error
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=mlp_width,
        num_hidden_layers=count_layers(weights, "encoder.layers"),
        num_attention_heads=width // HEAD_SIZE,
        image_size=math.isqrt(num_positions - 1) * patch_size,
        patch_size=patch_size,
        hidden_act="gelu",
        layer_norm_eps=VISION_NORM_EPS,
    )


def infer_text_config(weights: Mapping[str, Tensor]) -> BlipTextConfig:
    """The config of converted weights, from their shapes. Raises ValueError when one is missing."""
    try:
        vocab_size, width = weights["embeddings.word_embeddings.weight"].shape
        num_positions = len(weights["embeddings.position_embeddings.weight"])
        mlp_width = len(weights["encoder.layer.0.intermediate.dense.weight"])
        vision_width = weights["encoder.layer.0.crossattention.self.key.weight"].shape[1]
    except KeyError as error:
        raise ValueError(f"the text tower lacks {error}") from error
    return BlipTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        encoder_hidden_size=vision_width,
        intermediate_size=mlp_width,
        num_hidden_layers=count_layers(weights, "encoder.layer"),
        num_attention_heads=width // HEAD_SIZE,
        max_position_embeddings=num_positions,
        hidden_act="gelu",
        # Makes the layers with cross-attention; the text is read in both directions all the same.
        is_decoder=True,
    )
