"""mmdetection's Mask2Former with a Swin backbone as transformers' Mask2FormerForUniversalSegmentation.

The weights of GenEval's detector are mmdetection's own training, under its names: those of version 2 (the file
`mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_…743b7d99.pth`) or of version 3 (`…c9d0c4f2.pth`). Numbers are the same,
names are not, and neither are three layouts:

    attn.w_msa.qkv [3 d, d]                            ─►  q_proj, k_proj, v_proj, each [d, d]
    self-attention's in_proj_weight [3 d, d]           ─►  q_proj, k_proj, v_proj; cross-attention keeps it
    downsample.reduction [o, 4 C], downsample.norm [4 C]  ─►  four pixels merge channel by channel there (an unfold:
                                                           c, row, column), pixel by pixel here (column, row, c)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from rewards.loading.pretrained import freeze, parse_dtype, read_state_dict, refuse_missing

StateDict = dict[str, Tensor]

NUM_POINTS, NUM_LEVELS = 4, 3
"""Of its deformable attention, in every Mask2Former."""
_SWIN = "model.pixel_level_module.encoder"
_PIXELS = "model.pixel_level_module.decoder"
_QUERIES = "model.transformer_module"
_UNUSED = {"criterion.empty_weight", f"{_SWIN}.swin.layernorm.weight", f"{_SWIN}.swin.layernorm.bias"}
"""Weights of transformers' class that take no part in its outputs: the loss's, and a norm after the last stage."""
_NOT_WEIGHTS = re.compile(r".*\.relative_position_index$|panoptic_fusion_head\..*|.*\.num_batches_tracked$")

_HEAD = r"^panoptic_head\."
_END = r"\.(weight|bias)$"


def _split(prefix: str, kind: str, fused: Tensor) -> StateDict:
    parts = zip("qkv", fused.chunk(3), strict=True)
    return {f"{prefix}.{letter}_proj.{kind}": part.contiguous() for letter, part in parts}


def _block(match: re.Match[str], tensor: Tensor) -> StateDict:
    stage, block, module, kind = match.groups()
    prefix = f"{_SWIN}.swin.encoder.layers.{stage}.blocks.{block}"
    if module == "attn.w_msa.qkv":
        return _split(f"{prefix}.attention", kind, tensor)
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.w_msa.proj": "attention.o_proj",
        "ffn.layers.0.0": "mlp.fc1",
        "ffn.layers.1": "mlp.fc2",
    }
    return {f"{prefix}.{names[module]}.{kind}": tensor}


def _position_bias(match: re.Match[str], tensor: Tensor) -> StateDict:
    stage, block = match.groups()
    name = f"{_SWIN}.swin.encoder.layers.{stage}.blocks.{block}.attention.relative_position_bias"
    return {f"{name}.relative_position_bias_table": tensor}


def _downsample(match: re.Match[str], tensor: Tensor) -> StateDict:
    stage, module, kind = match.groups()
    return {f"{_SWIN}.swin.encoder.layers.{stage}.downsample.{module}.{kind}": merge_pixel_by_pixel(tensor)}


def merge_pixel_by_pixel(tensor: Tensor) -> Tensor:
    """The last dimension of 4 C values from the order (c, row, column) into (column, row, c)."""
    *leading, width = tensor.shape
    by_channel = tensor.reshape(*leading, width // 4, 2, 2)
    return by_channel.movedim(-3, -1).transpose(-3, -2).reshape(tensor.shape).contiguous()


def _out_norm(match: re.Match[str], tensor: Tensor) -> StateDict:
    return {f"{_SWIN}.hidden_states_norms.stage{int(match[1]) + 1}.{match[2]}": tensor}


def _convolution(match: re.Match[str], tensor: Tensor) -> StateDict:
    which, index, part, kind = match.groups()
    name = {
        "input": f"input_projections.{index}",
        "lateral": f"adapter_{int(index) + 1}",
        "output": f"layer_{int(index) + 1}",
    }[which]
    return {f"{_PIXELS}.{name}.{('conv', 'gn').index(part)}.{kind}": tensor}


def _pixel_layer(match: re.Match[str], tensor: Tensor) -> StateDict:
    layer, module, kind = match.groups()
    names = {"norms.0": "self_attn_layer_norm", "norms.1": "final_layer_norm"} | _FFN
    found = re.sub(r"^(attentions\.0|self_attn)\.", "self_attn.", module)
    return {f"{_PIXELS}.encoder.layers.{layer}.{names.get(found, found)}.{kind}": tensor}


_FFN = {f"{ffn}.layers.{place}": name for ffn in ("ffn", "ffns.0") for place, name in (("0.0", "fc1"), ("1", "fc2"))}
_QUERY_NORMS = {
    "norms.0": "cross_attn_layer_norm",
    "norms.1": "self_attn_layer_norm",
    "norms.2": "final_layer_norm",
}


def _query_layer(match: re.Match[str], tensor: Tensor) -> StateDict:
    layer, module, kind = match.groups()
    return {f"{_QUERIES}.decoder.layers.{layer}.{(_FFN | _QUERY_NORMS)[module]}.{kind}": tensor}


def _query_attention(match: re.Match[str], tensor: Tensor) -> StateDict:
    layer, which, name, kind = match.groups()
    attention = {"attentions.0": "cross_attn", "attentions.1": "self_attn"}.get(which, which)
    prefix = f"{_QUERIES}.decoder.layers.{layer}.{attention}"
    if name == "out_proj.":
        return {f"{prefix}.out_proj.{kind}": tensor}
    if attention == "self_attn":
        return _split(prefix, kind, tensor)
    return {f"{prefix}.in_proj_{kind}": tensor}


def _under(name: str, match: re.Match[str], tensor: Tensor) -> StateDict:
    return {match.expand(name): tensor}


_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], Tensor], StateDict]], ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"^backbone\.patch_embed\.projection" + _END,
         partial(_under, rf"{_SWIN}.swin.embeddings.patch_embeddings.projection.\1")),
        (r"^backbone\.patch_embed\.norm" + _END, partial(_under, rf"{_SWIN}.swin.embeddings.norm.\1")),
        (r"^backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.relative_position_bias_table$", _position_bias),
        (r"^backbone\.stages\.(\d+)\.blocks\.(\d+)\.(norm1|norm2|attn\.w_msa\.qkv|attn\.w_msa\.proj|ffn\.layers\.0\.0"
         r"|ffn\.layers\.1)" + _END, _block),
        (r"^backbone\.stages\.(\d+)\.downsample\.(reduction|norm)" + _END, _downsample),
        (r"^backbone\.norm(\d)" + _END, _out_norm),
        (_HEAD + r"pixel_decoder\.(input|lateral|output)_convs\.(\d+)\.(conv|gn)" + _END, _convolution),
        (_HEAD + r"pixel_decoder\.encoder\.layers\.(\d+)\.((?:attentions\.0|self_attn)\.(?:sampling_offsets"
         r"|attention_weights|value_proj|output_proj)|ffns?(?:\.0)?\.layers\.(?:0\.0|1)|norms\.[01])" + _END,
         _pixel_layer),
        (_HEAD + r"pixel_decoder\.level_encoding\.weight$", partial(_under, rf"{_PIXELS}.level_embed")),
        (_HEAD + r"pixel_decoder\.mask_feature" + _END, partial(_under, rf"{_PIXELS}.mask_projection.\1")),
        (_HEAD + r"transformer_decoder\.layers\.(\d+)\.(ffns?(?:\.0)?\.layers\.(?:0\.0|1)|norms\.[012])" + _END,
         _query_layer),
        (_HEAD + r"transformer_decoder\.layers\.(\d+)\.(attentions\.[01]|cross_attn|self_attn)\.attn\."
         r"(in_proj_|out_proj\.)(weight|bias)$", _query_attention),
        (_HEAD + r"transformer_decoder\.post_norm" + _END, partial(_under, rf"{_QUERIES}.decoder.layernorm.\1")),
        (_HEAD + r"query_embed\.weight$", partial(_under, rf"{_QUERIES}.queries_embedder.weight")),
        (_HEAD + r"query_feat\.weight$", partial(_under, rf"{_QUERIES}.queries_features.weight")),
        (_HEAD + r"level_embed\.weight$", partial(_under, rf"{_QUERIES}.level_embed.weight")),
        (_HEAD + r"cls_embed" + _END, partial(_under, r"class_predictor.\1")),
        (_HEAD + r"mask_embed\.0" + _END, partial(_under, rf"{_QUERIES}.decoder.mask_predictor.mask_embedder.0.0.\1")),
        (_HEAD + r"mask_embed\.2" + _END, partial(_under, rf"{_QUERIES}.decoder.mask_predictor.mask_embedder.1.0.\1")),
        (_HEAD + r"mask_embed\.4" + _END, partial(_under, rf"{_QUERIES}.decoder.mask_predictor.mask_embedder.2.0.\1")),
    )
)  # fmt: skip


def convert_state_dict(mmdet: Mapping[str, Tensor]) -> StateDict:
    """The weights under transformers' names and in its layouts. Raises ValueError for a name that is not known."""
    converted: StateDict = {}
    for name, tensor in mmdet.items():
        if _NOT_WEIGHTS.match(name):
            continue
        for pattern, rule in _RULES:
            if match := pattern.match(name):
                converted |= rule(match, tensor)
                break
        else:
            raise ValueError(f"'{name}' is no weight of mmdetection's Mask2Former with a Swin backbone")
    return converted


def infer_config(weights: Mapping[str, Tensor]) -> Mask2FormerConfig:
    """The config of converted weights, from their shapes. Raises ValueError when one is missing."""
    swin = f"{_SWIN}.swin"
    table = ".blocks.0.attention.relative_position_bias.relative_position_bias_table"
    try:
        embed_dim, _, patch_size, _ = weights[f"{swin}.embeddings.patch_embeddings.projection.weight"].shape
        num_stages = _count(weights, rf"^{re.escape(swin)}\.encoder\.layers\.(\d+)\.")
        depths = [
            _count(weights, rf"^{re.escape(swin)}\.encoder\.layers\.{stage}\.blocks\.(\d+)\.")
            for stage in range(num_stages)
        ]
        tables = [weights[f"{swin}.encoder.layers.{stage}{table}"] for stage in range(num_stages)]
        num_queries, width = weights[f"{_QUERIES}.queries_features.weight"].shape
        deformable = weights[f"{_PIXELS}.encoder.layers.0.self_attn.attention_weights.weight"]
        encoder_mlp = len(weights[f"{_PIXELS}.encoder.layers.0.fc1.weight"])
        decoder_mlp = len(weights[f"{_QUERIES}.decoder.layers.0.fc1.weight"])
        mask_width, feature_width = weights[f"{_PIXELS}.mask_projection.weight"].shape[:2]
        num_classes = len(weights["class_predictor.weight"]) - 1
    except KeyError as error:
        raise ValueError(f"the checkpoint lacks {error}") from error
    return Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": 224,  # of no effect: its windows are padded at run time
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depths": depths,
            "num_heads": [table.shape[1] for table in tables],
            "window_size": (math.isqrt(len(tables[0])) + 1) // 2,
            "drop_path_rate": 0.0,
            "out_features": [f"stage{stage + 1}" for stage in range(num_stages)],
        },
        feature_size=feature_width,
        mask_feature_size=mask_width,
        hidden_dim=width,
        encoder_feedforward_dim=encoder_mlp,
        encoder_layers=_count(weights, rf"^{re.escape(_PIXELS)}\.encoder\.layers\.(\d+)\."),
        # transformers counts the prediction from the queries alone as a layer.
        decoder_layers=1 + _count(weights, rf"^{re.escape(_QUERIES)}\.decoder\.layers\.(\d+)\."),
        num_attention_heads=len(deformable) // (NUM_LEVELS * NUM_POINTS),
        dim_feedforward=decoder_mlp,
        num_queries=num_queries,
        num_labels=num_classes,
    )


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    compiled = re.compile(pattern)
    return 1 + max((int(match[1]) for match in map(compiled.match, weights) if match), default=-1)


def load_mmdet_mask2former(path: str, dtype: str, device: str) -> Mask2FormerForUniversalSegmentation:
    """The detector in a file of mmdetection's, frozen, on its device. Raises OSError or ValueError for another file."""
    weights = convert_state_dict(read_state_dict(path))
    model = Mask2FormerForUniversalSegmentation(infer_config(weights))
    report = model.load_state_dict(weights, strict=False)
    refuse_missing(set(report.missing_keys) - _UNUSED, path)
    if report.unexpected_keys:
        raise ValueError(f"{path} holds {report.unexpected_keys[0]}, which transformers' Mask2Former has not")
    with torch.no_grad():
        return freeze(model.to(parse_dtype(dtype)), device)
