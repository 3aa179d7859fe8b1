"""A transformers Mask2Former under mmdetection's names, of its version 2 or 3: the inverse of what is loaded."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

SKIPPED = ("criterion.empty_weight", "pixel_level_module.encoder.swin.layernorm")
PLAIN = {
    "pixel_level_module.encoder.swin.embeddings.patch_embeddings.projection": "backbone.patch_embed.projection",
    "pixel_level_module.encoder.swin.embeddings.norm": "backbone.patch_embed.norm",
    "pixel_level_module.decoder.mask_projection": "panoptic_head.pixel_decoder.mask_feature",
    "pixel_level_module.decoder.adapter_1.0": "panoptic_head.pixel_decoder.lateral_convs.0.conv",
    "pixel_level_module.decoder.adapter_1.1": "panoptic_head.pixel_decoder.lateral_convs.0.gn",
    "pixel_level_module.decoder.layer_1.0": "panoptic_head.pixel_decoder.output_convs.0.conv",
    "pixel_level_module.decoder.layer_1.1": "panoptic_head.pixel_decoder.output_convs.0.gn",
    "pixel_level_module.decoder.level_embed": "panoptic_head.pixel_decoder.level_encoding.weight",
    "transformer_module.queries_embedder": "panoptic_head.query_embed",
    "transformer_module.queries_features": "panoptic_head.query_feat",
    "transformer_module.level_embed": "panoptic_head.level_embed",
    "transformer_module.decoder.layernorm": "panoptic_head.transformer_decoder.post_norm",
    "transformer_module.decoder.mask_predictor.mask_embedder.0.0": "panoptic_head.mask_embed.0",
    "transformer_module.decoder.mask_predictor.mask_embedder.1.0": "panoptic_head.mask_embed.2",
    "transformer_module.decoder.mask_predictor.mask_embedder.2.0": "panoptic_head.mask_embed.4",
    "class_predictor": "panoptic_head.cls_embed",
}
IN_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.w_msa.proj",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
    "attention.relative_position_bias": "attn.w_msa",
}


def tiny_detector(seed: int = 1, num_labels: int = 80) -> Mask2FormerForUniversalSegmentation:
    """With random weights that differ everywhere, so that a name that is mixed up shows."""
    torch.manual_seed(seed)
    config = Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": 224,
            "embed_dim": 12,
            "depths": [1, 2, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 4,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=48,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=4,
        dim_feedforward=40,
        num_queries=7,
        num_labels=num_labels,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    for name, weight in model.named_parameters():
        if not name.startswith("criterion") and "swin.layernorm" not in name:
            torch.nn.init.normal_(weight, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    return model


def as_mmdet(model: Mask2FormerForUniversalSegmentation, version: int) -> dict[str, Tensor]:
    """Its weights as mmdetection's file of that version holds them."""
    written: dict[str, Tensor] = {}
    state = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith(SKIPPED):
            continue
        stem, _, kind = name.rpartition(".")
        parts = name.split(".")
        if name in PLAIN:
            written[PLAIN[name]] = tensor
        elif stem in PLAIN:
            written[f"{PLAIN[stem]}.{kind}"] = tensor
        elif "swin.encoder.layers" in name and "blocks" in name:
            stage, block = parts[5], parts[7]
            prefix, module = f"backbone.stages.{stage}.blocks.{block}", ".".join(parts[8:-1])
            if module.endswith(("q_proj", "k_proj", "v_proj")):
                fused.setdefault(f"{prefix}.attn.w_msa.qkv.{kind}", {})[module[-6]] = tensor
            else:
                written[f"{prefix}.{IN_BLOCK[module]}.{kind}"] = tensor
        elif "downsample" in name:
            written[f"backbone.stages.{parts[5]}.downsample.{parts[7]}.{kind}"] = unfold_order(tensor)
        elif "hidden_states_norms" in name:
            written[f"backbone.norm{int(parts[3][-1]) - 1}.{kind}"] = tensor
        elif "input_projections" in name:
            part = ("conv", "gn")[int(parts[4])]
            written[f"panoptic_head.pixel_decoder.input_convs.{parts[3]}.{part}.{kind}"] = tensor
        elif name.startswith("pixel_level_module.decoder.encoder"):
            written[_pixel_layer(parts, version)] = tensor
        else:
            _write_query_layer(parts, tensor, version, written, fused)
    return written | {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in fused.items()}


def _write_query_layer(
    parts: list[str], tensor: Tensor, version: int, written: dict[str, Tensor], fused: dict[str, dict[str, Tensor]]
) -> None:
    attention = {"cross_attn": ("attentions.0", "cross_attn"), "self_attn": ("attentions.1", "self_attn")}
    norms = {"cross_attn_layer_norm": 0, "self_attn_layer_norm": 1, "final_layer_norm": 2}
    prefix, kind = f"panoptic_head.transformer_decoder.layers.{parts[3]}", parts[-1]
    if parts[4] in attention:
        prefix += f".{attention[parts[4]][version - 2]}.attn"
        if parts[5] in ("q_proj", "k_proj", "v_proj"):
            fused.setdefault(f"{prefix}.in_proj_{kind}", {})[parts[5][0]] = tensor
        else:
            written[f"{prefix}.{'.'.join(parts[5:])}"] = tensor
    else:
        own = f"norms.{norms[parts[4]]}" if parts[4] in norms else _ffn(parts[4], version)
        written[f"{prefix}.{own}.{kind}"] = tensor


def _pixel_layer(parts: list[str], version: int) -> str:
    prefix, kind = f"panoptic_head.pixel_decoder.encoder.layers.{parts[4]}", parts[-1]
    if parts[5] == "self_attn":
        return f"{prefix}.{('attentions.0', 'self_attn')[version - 2]}.{parts[6]}.{kind}"
    norms = {"self_attn_layer_norm": "norms.0", "final_layer_norm": "norms.1"}
    return f"{prefix}.{norms[parts[5]] if parts[5] in norms else _ffn(parts[5], version)}.{kind}"


def _ffn(name: str, version: int) -> str:
    return f"{('ffns.0', 'ffn')[version - 2]}.layers.{ {'fc1': '0.0', 'fc2': '1'}[name] }"


def unfold_order(tensor: Tensor) -> Tensor:
    """Last dimension from (column, row, c) to (c, row, column), index by index."""
    width = tensor.shape[-1] // 4
    places = [
        (2 * column + row) * width + channel for channel in range(width) for row in range(2) for column in range(2)
    ]
    return tensor[..., places]
