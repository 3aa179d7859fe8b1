"""A tiny Janus checkpoint in its authors' own format, as their code would have saved it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict

from learner.warm_start.tiny_janus import build_tokenizer

DATA = Path(__file__).resolve().parent / "data" / "janus_original"
LAYOUT = json.loads((DATA / "layout.json").read_text())
RECORD = json.loads((DATA / "record.json").read_text())


def weight_of(name: str, shape: list[int]) -> torch.Tensor:
    """float32: what the recorded run had under this name."""
    if name.endswith("codebook_used"):
        return torch.zeros(shape)
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) <= 1:
        is_scale = "norm" in name and name.endswith("weight")
        return torch.from_numpy((values * 0.1 + (1.0 if is_scale else 0.0)).astype(np.float32))
    return torch.from_numpy((values * (1.5 / np.sqrt(int(np.prod(shape[1:]))))).astype(np.float32))


def original_tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: weight_of(name, shape).to(dtype) for name, shape in LAYOUT["names"].items()}


def write_original(
    folder: Path, *, pickled: bool = False, shard_size: str = "5GB", dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Write the checkpoint; returns its tensors. Its tokenizer is the tiny Janus's, with 64 entries."""
    folder.mkdir(parents=True)
    tensors = original_tensors(dtype)
    save_torch_state_dict(tensors, folder, max_shard_size=shard_size, safe_serialization=not pickled)
    tokenizer = build_tokenizer([f"word{index}" for index in range(44)])
    assert len(tokenizer) == LAYOUT["config"]["language_config"]["vocab_size"]
    tokenizer.chat_template = None  # the authors' code has the format in Python
    tokenizer.save_pretrained(folder)
    _write(folder / "config.json", LAYOUT["config"])
    _write(folder / "processor_config.json", {"processor_class": "VLChatProcessor", "num_image_tokens": 64})
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    _write(folder / "preprocessor_config.json", {"image_processor_type": "VLMImageProcessor", "image_size": 32, **mean})
    return tensors


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))
