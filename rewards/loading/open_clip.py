"""An open_clip checkpoint as transformers' CLIPModel: names, shapes, and the config that fits them.

The two keep the same numbers. open_clip holds q, k and v of a layer in one matrix, and its two output
projections the other way round:

    attn.in_proj_weight [3 d, d]  ─►  q_proj.weight, k_proj.weight, v_proj.weight, each [d, d]
    visual.proj [d, e]            ─►  visual_projection.weight [e, d]
    text_projection [d, e]        ─►  text_projection.weight [e, d]
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping

import ftfy
from torch import Tensor
from transformers import CLIPConfig

from rewards.loading.state_dicts import StateDict, count_layers

_RENAMED = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_LAYER = re.compile(r"^(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)$")
_NOT_WEIGHTS = {"attn_mask"}


# What the shapes of a checkpoint do not tell; these are ViT-H/14's.
VISION_HEAD_SIZE = 80
TEXT_HEAD_SIZE = 64
HIDDEN_ACT = "gelu"


def clean_text(text: str) -> str:
    """A prompt as open_clip's tokenizer cleans it first: mojibake, curly quotes, ligatures, HTML's entities, spaces.

    transformers' tokenizer of the same vocabulary leaves these as they are, so that they become other tokens.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def convert_state_dict(open_clip: Mapping[str, Tensor]) -> StateDict:
    """The weights under the names and in the shapes of transformers' CLIPModel.

    Raises ValueError for a name that is not open_clip's.
    """
    converted: StateDict = {}
    for name, tensor in open_clip.items():
        layer = _LAYER.match(name)
        if name in _NOT_WEIGHTS:
            continue
        if name in _RENAMED:
            converted[_RENAMED[name]] = tensor
        elif name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif layer is not None:
            tower = "vision_model" if layer[1] else "text_model"
            converted |= _convert_in_layer(f"{tower}.encoder.layers.{layer[2]}", layer[3], layer[4], tensor)
        else:
            raise ValueError(f"'{name}' is no weight of an open_clip model with plain towers")
    return converted


def _convert_in_layer(prefix: str, module: str, kind: str, tensor: Tensor) -> StateDict:
    if module == "attn.in_proj":
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}.self_attn.{letter}_proj.{kind}": part.contiguous() for letter, part in parts}
    if module not in _IN_LAYER:
        raise ValueError(f"'{module}' is no part of an open_clip layer")
    return {f"{prefix}.{_IN_LAYER[module]}.{kind}": tensor}


def infer_config(weights: Mapping[str, Tensor]) -> CLIPConfig:
    """The config of the converted weights of a ViT-H/14, read from their shapes.

    Raises ValueError when a weight is missing or a width does not divide by its head size.
    """
    try:
        vision_width, _, patch_size, _ = weights["vision_model.embeddings.patch_embedding.weight"].shape
        num_positions = len(weights["vision_model.embeddings.position_embedding.weight"])
        vocab_size, text_width = weights["text_model.embeddings.token_embedding.weight"].shape
        num_text_positions = len(weights["text_model.embeddings.position_embedding.weight"])
        projection_dim = len(weights["text_projection.weight"])
        vision_mlp = len(weights["vision_model.encoder.layers.0.mlp.fc1.weight"])
        text_mlp = len(weights["text_model.encoder.layers.0.mlp.fc1.weight"])
    except KeyError as error:
        raise ValueError(f"the checkpoint lacks {error}") from error
    if vision_width % VISION_HEAD_SIZE or text_width % TEXT_HEAD_SIZE:
        raise ValueError(
            f"widths {vision_width} (vision) and {text_width} (text) do not divide by ViT-H/14's head sizes "
            f"{VISION_HEAD_SIZE} and {TEXT_HEAD_SIZE}; give the model as a folder with its config"
        )
    return CLIPConfig(
        projection_dim=projection_dim,
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": vision_mlp,
            "num_hidden_layers": count_layers(weights, "vision_model.encoder.layers"),
            "num_attention_heads": vision_width // VISION_HEAD_SIZE,
            "image_size": math.isqrt(num_positions - 1) * patch_size,
            "patch_size": patch_size,
            "projection_dim": projection_dim,
            "hidden_act": HIDDEN_ACT,
        },
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": text_width,
            "intermediate_size": text_mlp,
            "num_hidden_layers": count_layers(weights, "text_model.encoder.layers"),
            "num_attention_heads": text_width // TEXT_HEAD_SIZE,
            "max_position_embeddings": num_text_positions,
            "projection_dim": projection_dim,
            "hidden_act": HIDDEN_ACT,
            # open_clip pools at the highest token id, which is the last of the vocabulary.
            "eos_token_id": vocab_size - 1,
        },
    )
