"""Shapes of models whose config.json is not at hand: a plan downloads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cluster.planning.model_shape import ModelShape
from configs.errors import ModelError


def _janus_pro(hidden_size: int, intermediate_size: int, layers: int, heads: int) -> dict[str, Any]:
    """config.json of a Janus-Pro: what its sizes differ in; the rest are transformers' defaults."""
    return {
        "text_config": {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "vocab_size": 102400,
        },
        "vision_config": {"projection_dim": hidden_size},
        "vq_config": {"projection_dim": hidden_size, "image_token_embed_dim": hidden_size},
        "tie_word_embeddings": False,
    }


KNOWN: Final[Mapping[str, dict[str, Any]]] = {
    "deepseek-community/Janus-Pro-1B": _janus_pro(2048, 5632, 24, 16),
    "deepseek-community/Janus-Pro-7B": _janus_pro(4096, 11008, 30, 32),
}


def shape_of(model_path: str) -> ModelShape | None:
    """Of a local folder or a known hub id; None for another hub id. Raises ModelError for a broken config.json."""
    if model_path in KNOWN:
        return ModelShape.of(KNOWN[model_path])
    path = Path(model_path).expanduser() / "config.json"
    if not path.is_file():
        return None
    try:
        return ModelShape.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} does not describe a Janus model: {error!r}") from error
