"""A `llava_qwen` checkpoint (LLaVA-NeXT's own code) as transformers' LlavaOnevisionForConditionalGeneration.

The two hold the same modules under other names, so a renaming while loading is all it takes. Two things that
LLaVA-NeXT does in code go into the config: the last layer of the vision tower is dropped, since its output is not
used, and so is the tower's pooling head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, LlavaOnevisionConfig, SiglipVisionConfig

MODEL_TYPE = "llava_qwen"
KEY_MAPPING: Mapping[str, str] = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
"""Regular expression of a name in the checkpoint -> name in transformers."""

_SO400M = "google/siglip-so400m-patch14-384"
_ONLY = {"mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial_unpad"}
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
)


def convert_config(original: Mapping[str, Any]) -> LlavaOnevisionConfig:
    """The config of a checkpoint, from the content of its config.json.

    Raises ValueError for a variant that LlavaOnevisionForConditionalGeneration cannot hold; OSError when the vision
    tower is not the usual one and its config cannot be read.
    """
    for field, supported in _ONLY.items():
        if original.get(field, supported) != supported:
            raise ValueError(f"{field} is '{original[field]}', only {supported} is supported")
    tower = original["mm_vision_tower"]
    vision = _so400m() if tower == _SO400M else _vision_config(tower)
    aspect_ratio = original.get("image_aspect_ratio") or "pad"
    text = {field: original[field] for field in _TEXT_FIELDS if field in original}
    return LlavaOnevisionConfig(
        vision_config=vision.to_dict() | {"num_hidden_layers": vision.num_hidden_layers - 1, "vision_use_head": False},
        text_config={"model_type": "qwen2", **text},
        vision_aspect_ratio=aspect_ratio,
        image_grid_pinpoints=_grid(original.get("image_grid_pinpoints"), vision.image_size),
        tie_word_embeddings=bool(original.get("tie_word_embeddings", False)),
    )


def _so400m() -> SiglipVisionConfig:
    """Known by heart, so that no further repository is needed."""
    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )


def _vision_config(tower: str) -> SiglipVisionConfig:
    config = AutoConfig.from_pretrained(tower)
    vision = getattr(config, "vision_config", config)
    if not isinstance(vision, SiglipVisionConfig):
        raise ValueError(f"mm_vision_tower '{tower}' is no SigLIP")
    return vision


def _grid(pinpoints: Any, tile: int) -> list[list[int]] | None:
    """Sizes in pixels that a picture may be cut into tiles at; LLaVA-NeXT writes them as "(1x1),...,(6x6)" tiles."""
    if not isinstance(pinpoints, str):
        return pinpoints
    ends = re.findall(r"\((\d+)x(\d+)\)", pinpoints)
    if not ends:
        raise ValueError(f"image_grid_pinpoints is '{pinpoints}', not like (1x1),...,(6x6)")
    (first_row, first_column), (last_row, last_column) = (tuple(map(int, end)) for end in (ends[0], ends[-1]))
    rows, columns = range(first_row, last_row + 1), range(first_column, last_column + 1)
    return [[row * tile, column * tile] for row in rows for column in columns]
