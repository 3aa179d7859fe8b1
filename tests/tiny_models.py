"""Tiny Janus checkpoints with random weights, made once a test session.

Weights are large, so that next-token distributions are far from uniform and a mistake shows.
"""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import JanusForConditionalGeneration

from configs.local.owned_folder import OwnedFolder, sweep
from configs.schema import TinyJanusConfig
from learner.warm_start.tiny_janus import build_tiny_janus, save_pretrained_model

WORDS = tuple(f"word{index}" for index in range(80))
_WEIGHT_STD = 0.06
_PREFIX = "bicot-tiny-"
sweep(_PREFIX, Path(tempfile.gettempdir()))
_FOLDERS = OwnedFolder(_PREFIX, Path(tempfile.gettempdir()))
atexit.register(_FOLDERS.close)


@cache
def tiny_janus_folder(num_kv_heads: int = 2, seed: int = 0) -> Path:
    """A Hugging Face folder: 4 layers, 4 heads that share `num_kv_heads` key-value heads, 64 image tokens."""
    folder = _FOLDERS.path / f"kv{num_kv_heads}-seed{seed}"
    template, tokenizer = build_tiny_janus(TinyJanusConfig(seed=seed), WORDS, _WEIGHT_STD)
    config = template.config
    config.text_config.num_key_value_heads = num_kv_heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = JanusForConditionalGeneration(config).float().eval()
    model.generation_config = template.generation_config
    save_pretrained_model(model, tokenizer, folder)
    return folder
