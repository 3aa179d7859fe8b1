"""How the tensors of a Janus checkpoint are called by its authors, and how by transformers.

The authors' code (`model_type: multi_modality`, as in deepseek-ai/Janus-Pro-1B and -7B and CaraJ/T2I-R1) and
transformers' `JanusForConditionalGeneration` hold the same weights under other names. Two kinds of tensors differ in
shape, too: the vision tower's attention keeps query, key and value in one matrix, and its position embedding has a
leading axis of size 1. Some tensors of the authors' have no place in transformers' class, see `UNUSED`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from configs.errors import ModelError

UNUSED = (
    # The head of the SigLIP tower: the authors build it and never call it (`ignore_head`).
    "vision_model.vision_tower.attn_pool.",
    # A counter of the VQ model's training.
    "gen_vision_model.quantize.codebook_used",
)
"""Prefixes of the authors' tensors that only their code holds."""

_TOWER, _LAYER = "vision_model.vision_tower", "model.vision_model.encoder.layers.{i}"
_QKV = re.compile(r"^vision_model\.vision_tower\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)$")
_SPLIT_QKV = re.compile(r"^model\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$")
_POSITIONS = (f"{_TOWER}.pos_embed", "model.vision_model.embeddings.position_embedding.weight")


@dataclass(frozen=True)
class Rule:
    """One pair of names. `{i}` and `{j}` stand for numbers, `{rest}` for whatever follows."""

    original: str
    hugging_face: str

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        return _pattern(self.original), _pattern(self.hugging_face)


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    for name in ("i", "j"):
        escaped = escaped.replace(rf"\{{{name}\}}", rf"(?P<{name}>\d+)")
    return re.compile(escaped.replace(r"\{rest\}", "(?P<rest>.+)") + "$")


def _mlp(original: str, hugging_face: str, max_depth: int = 8) -> list[Rule]:
    """An aligner: the authors' Sequential counts its activations, transformers' list does not."""
    hidden = [
        Rule(f"{original}.layers.{2 * depth + 2}.{{rest}}", f"{hugging_face}.hidden_layers.{depth}.{{rest}}")
        for depth in range(max_depth)
    ]
    return [Rule(f"{original}.layers.0.{{rest}}", f"{hugging_face}.fc1.{{rest}}"), *hidden]


def _vq_model(part: str, levels: str) -> list[Rule]:
    """The VQ model's encoder or decoder; both sides list the levels in the order in which they run."""
    original, hugging_face = f"gen_vision_model.{part}", f"model.vqmodel.{part}"
    middle = [
        Rule(f"{original}.mid.{index}.{{rest}}", f"{hugging_face}.mid.{name}.{{rest}}")
        for index, name in enumerate(("block_1", "attn_1", "block_2"))
    ]
    return [
        *middle,
        Rule(f"{original}.conv_blocks.{{i}}.res.{{rest}}", f"{hugging_face}.{levels}.{{i}}.block.{{rest}}"),
        Rule(f"{original}.conv_blocks.{{i}}.{{rest}}", f"{hugging_face}.{levels}.{{i}}.{{rest}}"),
    ]


RULES = (
    Rule("language_model.model.{rest}", "model.language_model.{rest}"),
    Rule("language_model.lm_head.{rest}", "lm_head.{rest}"),
    Rule(f"{_TOWER}.blocks.{{i}}.norm1.{{rest}}", f"{_LAYER}.layer_norm1.{{rest}}"),
    Rule(f"{_TOWER}.blocks.{{i}}.norm2.{{rest}}", f"{_LAYER}.layer_norm2.{{rest}}"),
    Rule(f"{_TOWER}.blocks.{{i}}.attn.proj.{{rest}}", f"{_LAYER}.self_attn.projection_layer.{{rest}}"),
    Rule(f"{_TOWER}.blocks.{{i}}.mlp.{{rest}}", f"{_LAYER}.mlp.{{rest}}"),
    Rule(f"{_TOWER}.patch_embed.proj.{{rest}}", "model.vision_model.embeddings.patch_embedding.{rest}"),
    Rule(f"{_TOWER}.norm.{{rest}}", "model.vision_model.post_layernorm.{rest}"),
    *_mlp("aligner", "model.aligner"),
    *_mlp("gen_aligner", "model.generation_aligner"),
    Rule("gen_embed.weight", "model.generation_embeddings.weight"),
    Rule("gen_head.output_mlp_projector.{rest}", "model.generation_head.proj_out.{rest}"),
    Rule("gen_head.vision_head.{rest}", "model.generation_head.vision_head.{rest}"),
    *_vq_model("encoder", "down"),
    *_vq_model("decoder", "up"),
    Rule("gen_vision_model.{rest}", "model.vqmodel.{rest}"),
)
"""Tried in this order; the first that matches is taken."""


def to_hugging_face(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The authors' tensors under transformers' names, and those that transformers has no place for.

    Nothing is computed, and nothing but the split matrices is copied. Raises ModelError for a name that no rule knows.
    """
    converted: dict[str, torch.Tensor] = {}
    unused: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(UNUSED):
            unused[name] = tensor
        elif match := _QKV.match(name):
            layer, kind = match.groups()
            for part, values in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"model.vision_model.encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = values.clone()
        elif name == _POSITIONS[0]:
            converted[_POSITIONS[1]] = tensor.squeeze(0)
        else:
            converted[_renamed(name, 0)] = tensor
    return converted, unused


def to_original(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' tensors under the authors' names: the inverse of `to_hugging_face`. Raises ModelError."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if match := _SPLIT_QKV.match(name):
            layer, part, kind = match.groups()
            if part == "q":
                own = f"model.vision_model.encoder.layers.{layer}.self_attn.{{}}_proj.{kind}"
                parts = [_tensor(tensors, own.format(letter)) for letter in "qkv"]
                converted[f"{_TOWER}.blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
        elif name == _POSITIONS[1]:
            converted[_POSITIONS[0]] = tensor.unsqueeze(0)
        else:
            converted[_renamed(name, 1)] = tensor
    return converted


def _tensor(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in tensors:
        raise ModelError(f"the checkpoint has no tensor '{name}'")
    return tensors[name]


def _renamed(name: str, side: int) -> str:
    """The name on the other side. side: 0 for one of the authors', 1 for one of transformers'."""
    for rule in RULES:
        if match := rule.patterns[side].match(name):
            template = (rule.hugging_face, rule.original)[side]
            return template.format(**match.groupdict())
    raise ModelError(f"tensor '{name}' is none of Janus's: no rule says what it is called in the other format")
