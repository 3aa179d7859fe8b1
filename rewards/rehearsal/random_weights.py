"""Which rewards have random weights, and the options that make a reward load them.

reward of a config ─► with_random_weights ─► files in a folder, and the same reward with options that name them
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from configs.schema import RewardConfig

Recipe = Callable[[Path, Sequence[str], int], dict[str, Any]]
"""folder, texts that will be read, layers -> options of the reward."""

WITHOUT_WEIGHTS: Final = ("shapes", "http", "vlm_judge", "unified_reward", "logprob_judge")
"""They compute by rule, or ask a server; a rehearsal runs them as they are, and so a reward of one's own."""


def _hps(folder: Path, texts: Sequence[str], layers: int) -> dict[str, Any]:
    from rewards.rehearsal.models import CLIP_H, save_open_clip
    from rewards.rehearsal.tokenizers import save_clip_tokenizer, words_of

    vocabulary = save_clip_tokenizer(folder, words_of(texts))
    save_open_clip(folder / "open_clip.pt", CLIP_H, vocabulary, layers)
    return {"model": str(folder / "open_clip.pt"), "tokenizer": str(folder)}


def _pick_score(folder: Path, texts: Sequence[str], layers: int) -> dict[str, Any]:
    from rewards.rehearsal.models import CLIP_H, save_clip
    from rewards.rehearsal.tokenizers import save_clip_tokenizer, words_of

    save_clip(folder, CLIP_H, save_clip_tokenizer(folder, words_of(texts)), layers)
    return {"model": str(folder), "processor": str(folder)}


def _clip_score(folder: Path, texts: Sequence[str], layers: int) -> dict[str, Any]:
    from rewards.rehearsal.models import CLIP_B, save_clip
    from rewards.rehearsal.tokenizers import save_clip_tokenizer, words_of

    save_clip(folder, CLIP_B, save_clip_tokenizer(folder, words_of(texts)), layers)
    return {"model": str(folder)}


def _git_vqa(folder: Path, texts: Sequence[str], layers: int) -> dict[str, Any]:
    from rewards.rehearsal.models import save_git
    from rewards.rehearsal.tokenizers import bert_vocabulary, save_bert_tokenizer, words_of

    save_bert_tokenizer(folder, bert_vocabulary(["yes", "no", *words_of(texts)]))
    save_git(folder, layers)
    return {"model": str(folder)}


def _grounding_dino(folder: Path, texts: Sequence[str], layers: int) -> dict[str, Any]:
    from rewards.rehearsal.models import save_grounding_dino
    from rewards.rehearsal.tokenizers import bert_vocabulary, save_bert_tokenizer, words_of

    save_bert_tokenizer(folder, bert_vocabulary(words_of(texts)))
    save_grounding_dino(folder, layers)
    return {"model": str(folder)}


def _orm(folder: Path, texts: Sequence[str], layers: int) -> dict[str, Any]:
    from rewards.alignment.orm import BEFORE_PICTURE, QUESTION
    from rewards.rehearsal.models import save_llava_qwen
    from rewards.rehearsal.tokenizers import save_chat_tokenizer

    words = {word for text in (*texts, QUESTION, BEFORE_PICTURE) for word in re.findall(r"\w+|[^\w\s]+", text)}
    special = ("<|im_start|>", "<|im_end|>", "<image>", "<video>")
    vocabulary = save_chat_tokenizer(folder, sorted({"yes", "no", *words} - set(special)), special)
    save_llava_qwen(folder, vocabulary, layers)
    return {"model": str(folder), "dtype": "bfloat16"}


RECIPES: Final[Mapping[str, Recipe]] = {
    "hps": _hps,
    "pick_score": _pick_score,
    "clip_score": _clip_score,
    "git_vqa": _git_vqa,
    "grounding_dino": _grounding_dino,
    "orm": _orm,
}


def needs_weights(reward: RewardConfig) -> bool:
    """Whether a reward that bicot ships loads weights, which it would have to download."""
    from rewards.registry import REGISTERED

    return reward.implementation in REGISTERED and reward.implementation not in WITHOUT_WEIGHTS


def has_random_weights(reward: RewardConfig) -> bool:
    """Whether `with_random_weights` knows the reward's model."""
    return reward.implementation in RECIPES


def with_random_weights(reward: RewardConfig, folder: Path, texts: Sequence[str], layers: int) -> RewardConfig:
    """The same reward on random weights of its default model's shape, which are written to `folder`.

    texts: what it will read. layers: of each of its towers. Raises KeyError for one without a recipe, OSError.
    """
    folder.mkdir(parents=True)
    options = RECIPES[reward.implementation](folder, texts, layers)
    return reward.model_copy(update={"options": {**reward.options, **options}})
