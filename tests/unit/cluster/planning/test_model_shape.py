"""Parameter counts from config.json, against transformers' own class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from cluster.planning.model_shape import ModelShape
from configs.schema import TinyJanusConfig
from learner.warm_start.tiny_janus import build_tiny_janus


def janus(text: dict[str, Any], vision: dict[str, Any], vq: dict[str, Any], tied: bool = False) -> JanusConfig:
    return JanusConfig(
        text_config=LlamaConfig(**text).to_dict(),
        vision_config=JanusVisionConfig(**vision).to_dict(),
        vq_config=JanusVQVAEConfig(**vq).to_dict(),
        tie_word_embeddings=tied,
    )


PRO_1B = janus(
    {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
     "num_key_value_heads": 16, "vocab_size": 102400},
    {}, {},
)  # fmt: skip
PRO_7B = janus(
    {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30, "num_attention_heads": 32,
     "vocab_size": 102400},
    {"projection_dim": 4096}, {"projection_dim": 4096, "image_token_embed_dim": 4096},
)  # fmt: skip
GROUPED = janus(
    {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
     "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 100},
    {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 4,
     "mlp_ratio": 2.5, "projection_dim": 64, "depth": 3, "num_image_tokens": 64, "attention_bias": False},
    {"num_embeddings": 50, "base_channels": 32, "channel_multiplier": [1, 2, 3], "num_res_blocks": 1,
     "latent_channels": 16, "projection_dim": 48, "num_hidden_layers": 3, "image_token_embed_dim": 64},
    tied=True,
)  # fmt: skip
TINY = build_tiny_janus(TinyJanusConfig(), [f"word{index}" for index in range(20)])[0].config


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("config", [PRO_1B, PRO_7B, GROUPED, TINY], ids=["1b", "7b", "grouped", "tiny"])
@pytest.mark.parametrize("written_in_full", [True, False])
def test_every_part_has_as_many_parameters_as_transformers_builds(config: JanusConfig, written_in_full: bool) -> None:
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    shape = ModelShape.of(config.to_dict() if written_in_full else config.to_diff_dict())
    parts, vq = model.model, shape.vq
    assert shape.language_model == parameters(parts.language_model)
    assert vq.parameters == parameters(parts.vqmodel)
    assert vq.head_parameters == parameters(parts.generation_head)
    assert vq.embedding_parameters == parameters(parts.generation_embeddings) + parameters(parts.generation_aligner)
    assert shape.vision_parameters == parameters(parts.vision_model) + parameters(parts.aligner)
    assert shape.total == parameters(model)
    assert shape.num_image_tokens == config.vision_config.num_image_tokens


def test_janus_pro_in_round_numbers() -> None:
    assert round(ModelShape.of(PRO_7B.to_dict()).trainable / 1e9, 2) == 6.91
    both_streams = ModelShape.of(PRO_7B.to_dict()).text.kv_bytes_per_token(2, num_streams=2)
    assert round(both_streams / 2**20, 2) == 0.94
