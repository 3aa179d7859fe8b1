"""The random models that are measured, and the config that they run under."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import configs
from configs.load import load_config
from configs.schema import RunConfig, TinyJanusConfig

SHAPES_CONFIG = Path(configs.__file__).parent / "shapes_cpu.yaml"
LARGER = TinyJanusConfig(hidden_size=256, num_layers=6)
"""About 5 M parameters."""
HUNDRED_MB = TinyJanusConfig(hidden_size=512, num_layers=8, num_heads=8)
"""About 25 M trainable parameters: 100 MB in float32."""
PRO_1B = TinyJanusConfig(
    hidden_size=2048, num_layers=24, num_heads=16, max_positions=1024, num_codes=16384, image_size=384, patch_size=16
)
"""Janus-Pro-1B's language model, but for a text vocabulary of words; 576 tokens a picture of 384 pixels."""
_NUM_PROMPTS_FOR_WORDS = 200
_WEIGHT_STD = 0.06
"""Of the matrices that write and draw; smaller ones would make every next-token distribution nearly uniform."""
_MB_PER_LAYER = 100
"""In bfloat16, of a layer of `wide_model`."""


def wide_model(megabytes: int) -> TinyJanusConfig:
    """Layers as wide as Janus-Pro-1B's, so many that they take about `megabytes` of bfloat16; a small picture."""
    return TinyJanusConfig(hidden_size=2048, num_layers=max(1, round(megabytes / _MB_PER_LAYER)), num_heads=16)


def make_model(parent: Path, name: str, config: TinyJanusConfig, in_bfloat16: bool = False) -> tuple[str, str]:
    """Write a random model that knows the words of the shapes world; returns its folder and the policy's size."""
    import torch

    from learner.warm_start.tiny_janus import build_tiny_janus, collect_words, save_pretrained_model
    from rollout.shapes import load_split

    words = collect_words(prompt.text for prompt in load_split("train", _NUM_PROMPTS_FOR_WORDS))
    model, tokenizer = build_tiny_janus(config, words, _WEIGHT_STD)
    save_pretrained_model(model.to(torch.bfloat16) if in_bfloat16 else model, tokenizer, parent / name)
    reads_or_decodes = ("model.vqmodel.", "model.vision_model.", "model.aligner.")
    num_parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(reads_or_decodes))
    return str(parent / name), f"{num_parameters / 1e6:.1f} M parameters"


def random_model_overrides(folder: str, seed_name: str = "bench") -> list[str]:
    """Overrides of the shapes config that start it from `folder`, without a warm start."""
    return [f"run.name={seed_name}", f"model.path={folder}", "model.tiny=null", "warm_start=null"]


def shapes_config(folder: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The shipped shapes config on the model in `folder`."""
    return load_config(SHAPES_CONFIG, [*random_model_overrides(folder), *overrides])
