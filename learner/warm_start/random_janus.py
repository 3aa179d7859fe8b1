"""A Janus with the widths of another one, few layers and random weights: what a rehearsal starts from.

    config.json of the model, as a mapping ─► save_random_janus ─► folder: weights, tokenizer, generation config

Sizes stay what they are, the text vocabulary with its 102,400 rows among them, so that engine, learner and weight sync
meet the shapes of the real run. Only layers are left out: of the language model and of the vision model, which drawing
never uses.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import GenerationConfig, JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from configs.errors import ModelError
from learner.warm_start.tiny_janus import BEGIN_OF_IMAGE, IMAGE, PUNCTUATION, SPECIAL_TOKENS, build_tokenizer

WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
MAX_POSITIONS: Final = 16384
"""Of Janus-Pro, where the config does not say."""


def with_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The config.json of the same model with at most so many layers in each tower."""
    text, vision = dict(config.get("text_config", {})), dict(config.get("vision_config", {}))
    text["num_hidden_layers"] = min(layers, int(text.get("num_hidden_layers", layers)))
    text.setdefault("max_position_embeddings", MAX_POSITIONS)
    vision["num_hidden_layers"] = min(layers, int(vision.get("num_hidden_layers", layers)))
    return {**config, "text_config": text, "vision_config": vision}


def save_random_janus(
    folder: Path,
    config: Mapping[str, Any],
    *,
    layers: int,
    dtype: torch.dtype,
    words: Sequence[str] = (),
    like: Path | None = None,
) -> None:
    """Write the model into `folder`.

    config: content of the model's config.json. words: what a tokenizer made on the spot knows. like: a local
    checkpoint, whose tokenizer, chat template and other small files are taken instead.
    Raises ModelError for a vocabulary that is too small for the special tokens.
    """
    janus = JanusConfig.from_dict(with_layers(config, layers))
    vocabulary = int(janus.text_config.vocab_size)
    tokenizer = None if like is not None else _tokenizer_of_size(vocabulary, words)
    if tokenizer is not None:
        janus.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
        for name in ("bos", "eos", "pad"):
            setattr(janus.text_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    model = _build(janus, dtype)
    if tokenizer is not None:
        model.generation_config = _generation_config(tokenizer)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    elif like is not None:
        _copy_small_files(like, folder)


def _build(config: JanusConfig, dtype: torch.dtype) -> JanusForConditionalGeneration:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # never twice the memory for a moment
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return JanusForConditionalGeneration(config).to(dtype).eval()
    finally:
        torch.set_default_dtype(before)


def _tokenizer_of_size(vocabulary: int, words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word for every id: whatever a random policy samples can be read, and written again."""
    known = dict.fromkeys((*SPECIAL_TOKENS, *PUNCTUATION, *(word.lower() for word in words)))
    if len(SPECIAL_TOKENS) + len(PUNCTUATION) > vocabulary:
        raise ModelError(f"a text vocabulary of {vocabulary} has no room for the special tokens of a Janus")
    entries = [entry for entry in known if entry not in (*SPECIAL_TOKENS, *PUNCTUATION)]
    room = vocabulary - len(SPECIAL_TOKENS) - len(PUNCTUATION)
    fillers = (f"filler{place}" for place in range(vocabulary))
    unused = [filler for filler in fillers if filler not in known][: max(0, room - len(entries))]
    return build_tokenizer([*entries[:room], *unused])


def _generation_config(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(BEGIN_OF_IMAGE)},
    )


def _copy_small_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.is_file() and path.name != "config.json" and not path.name.endswith(WEIGHT_SUFFIXES):
            shutil.copyfile(path, target / path.name)
