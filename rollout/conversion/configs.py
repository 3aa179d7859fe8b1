"""The config of a Janus model, from its authors' form to transformers' and back.

The authors' config.json names classes (`VQ-16`, `siglip_large_patch16_384`) where transformers' gives sizes, so sizes
are read off the tensors' shapes. The number of attention heads shows in no shape; it comes with the class name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from configs.errors import ModelError

VISION_HEADS = {"siglip_large_patch16_384": 16, "siglip_so400m_patch14_384": 16, "siglip_so400m_patch14_224": 16}
"""Attention heads of the authors' SigLIP towers."""

Shapes = Mapping[str, torch.Size]


def hugging_face_config(original: Mapping[str, Any], shapes: Shapes, image_token_id: int) -> JanusConfig:
    """transformers' config of a model. original: the authors' config.json; shapes: of transformers' tensors.

    Raises ModelError for a config or tensors that are not a Janus model's.
    """
    try:
        language = dict(original["language_config"])
        vision_params = dict(original["vision_config"]["params"])
    except (KeyError, TypeError) as error:
        raise ModelError(f"config.json of the original has no {error}: is it a Janus checkpoint?") from error
    dtype = language.pop("torch_dtype", None) or original.get("torch_dtype")
    text = LlamaConfig(**language)
    vision = _vision_config(vision_params, shapes, text.hidden_size)
    return JanusConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        vq_config=_vq_config(shapes, vision).to_dict(),
        image_token_id=image_token_id,
        tie_word_embeddings=bool(language.get("tie_word_embeddings", False)),
        dtype=dtype,
    )


def _vision_config(params: Mapping[str, Any], shapes: Shapes, projection_dim: int) -> JanusVisionConfig:
    patches = _shape(shapes, "model.vision_model.embeddings.patch_embedding.weight")
    hidden_size, patch_size = patches[0], patches[-1]
    image_size = int(params.get("image_size", 384))
    name = params.get("model_name")
    heads = params.get("num_attention_heads", VISION_HEADS.get(str(name)))
    if heads is None:
        raise ModelError(
            f"vision_config.params.model_name '{name}' is not known ({', '.join(VISION_HEADS)}); "
            "add num_attention_heads to vision_config.params of the original's config.json"
        )
    return JanusVisionConfig(
        hidden_size=hidden_size,
        num_hidden_layers=_count(shapes, r"model\.vision_model\.encoder\.layers\.(\d+)\."),
        num_attention_heads=int(heads),
        image_size=image_size,
        patch_size=patch_size,
        mlp_ratio=_shape(shapes, "model.vision_model.encoder.layers.0.mlp.fc1.weight")[0] / hidden_size,
        num_image_tokens=(image_size // patch_size) ** 2,
        projection_dim=projection_dim,
        depth=_count(shapes, r"model\.aligner\.hidden_layers\.(\d+)\.") + 1,
    )


def _vq_config(shapes: Shapes, vision: JanusVisionConfig) -> JanusVQVAEConfig:
    codes = _shape(shapes, "model.vqmodel.quantize.embedding.weight")
    base_channels, in_channels = _shape(shapes, "model.vqmodel.encoder.conv_in.weight")[:2]
    num_levels = _count(shapes, r"model\.vqmodel\.encoder\.down\.(\d+)\.")
    first_of_level = "model.vqmodel.encoder.down.{}.block.0.conv2.weight"
    widths = [_shape(shapes, first_of_level.format(level))[0] for level in range(num_levels)]
    head = _shape(shapes, "model.generation_head.vision_head.weight")
    return JanusVQVAEConfig(
        num_embeddings=codes[0],
        embed_dim=codes[1],
        latent_channels=_shape(shapes, "model.vqmodel.decoder.conv_in.weight")[1],
        in_channels=in_channels,
        base_channels=base_channels,
        channel_multiplier=[width // base_channels for width in widths],
        num_res_blocks=_count(shapes, r"model\.vqmodel\.encoder\.down\.0\.block\.(\d+)\."),
        num_patches=int(vision.image_size) // int(vision.patch_size),
        out_channels=_shape(shapes, "model.vqmodel.decoder.conv_out.weight")[0],
        projection_dim=head[1],
        num_hidden_layers=_count(shapes, r"model\.generation_aligner\.hidden_layers\.(\d+)\.") + 1,
        image_token_embed_dim=_shape(shapes, "model.generation_head.proj_out.weight")[1],
    )


def original_config(config: JanusConfig) -> dict[str, Any]:
    """The authors' config.json of a model that was never in their format. Raises ModelError for another vision tower
    or VQ model than Janus-Pro's: their code builds these by name."""
    vision, vq, text = config.vision_config, config.vq_config, config.text_config
    name = "siglip_large_patch16_384"
    sizes = (vision.hidden_size, vision.num_attention_heads, vision.patch_size, vq.base_channels)
    if sizes != (1024, VISION_HEADS[name], 16, 128) or list(vq.channel_multiplier) != [1, 1, 2, 2, 4]:
        raise ModelError(
            "the authors' code can build only Janus-Pro's own vision tower and VQ model; this checkpoint has others"
        )
    aligner = {"projector_type": "mlp_gelu", "n_embed": text.hidden_size}
    codes = vq.num_embeddings
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "torch_dtype": str(config.dtype).removeprefix("torch.") if config.dtype else "bfloat16",
        "aligner_config": _part(
            "aligner", "MlpProjector", {**aligner, "depth": vision.depth, "input_dim": vision.hidden_size}
        ),
        "gen_aligner_config": _part(
            "gen_aligner", "MlpProjector", {**aligner, "depth": vq.num_hidden_layers, "input_dim": vq.embed_dim}
        ),
        "gen_head_config": _part(
            "gen_head",
            "vision_head",
            {
                "image_token_embed": vq.projection_dim,
                "image_token_size": codes,
                "n_embed": vq.image_token_embed_dim,
            },
        ),
        "gen_vision_config": _part("gen_vision", "VQ-16", {"image_token_size": codes, "n_embed": vq.embed_dim}),
        "language_config": {**text.to_diff_dict(), "model_type": "llama", "vocab_size": text.vocab_size},
        "vision_config": _part(
            "vision",
            "CLIPVisionTower",
            {
                "image_size": vision.image_size,
                "model_name": name,
                "select_feature": "same",
                "select_layer": vision.num_hidden_layers - 24 - 1,
            },
        ),
    }


def _part(model_type: str, cls: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_type": model_type, "cls": cls, "params": dict(params)}


def _shape(shapes: Shapes, name: str) -> torch.Size:
    if name not in shapes:
        raise ModelError(f"the checkpoint has no tensor that becomes '{name}'")
    return shapes[name]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that `pattern` finds in the names; 0 when it finds none."""
    numbers = [int(match.group(1)) for name in shapes if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1
