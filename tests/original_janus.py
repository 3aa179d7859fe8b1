"""A tiny Janus checkpoint in its authors' own format, as their code would have saved it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict

from configs.schema import RolloutConfig
from learner.warm_start.tiny_janus import build_tokenizer
from rollout.engine import EngineSettings, SequenceRequest
from rollout.pictures import ImageDecoder
from rollout.records import UInt8Array
from rollout.transformers_engine import TransformersEngine

DATA = Path(__file__).resolve().parent / "data" / "janus_original"
LAYOUT = json.loads((DATA / "layout.json").read_text())
NUM_IMAGE_TOKENS = 64
RECORD = json.loads((DATA / "record.json").read_text())
TRAINED = json.loads((DATA / "trained.json").read_text())


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


async def draw_greedily(folder: Path, prompt_ids: Sequence[int]) -> tuple[list[int], UInt8Array]:
    """Codes and picture, uint8 [height, width, 3], that bicot's engine draws from a converted folder: always the
    likeliest code under a guidance of 5, in float32."""
    engine = await TransformersEngine.start(EngineSettings(str(folder), RolloutConfig(engine="transformers")))
    prompt = np.array(prompt_ids, np.int32)
    try:
        drawn = await engine.generate(SequenceRequest("greedy", "image", prompt, NUM_IMAGE_TOKENS, 0.0, 5.0, seed=0))
    finally:
        await engine.close()
    (picture,) = ImageDecoder(str(folder), "cpu", 1).decode(drawn.token_ids[None])
    return drawn.token_ids.tolist(), picture
