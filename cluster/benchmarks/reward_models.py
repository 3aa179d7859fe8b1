"""What the rewards' models cost outside the model, and what another precision does to their scores.

preprocessing   one picture after the other through transformers' own processor, against the batch of `Preprocessing`
precision       bfloat16 against float32 on random models of each class: how far scores move beside the spread within
                a group, and how many pairs of a group's pictures change their order
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import kendalltau
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    GroundingDinoImageProcessorPil,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from cluster.benchmarks.report import Scope, Table, ratio, spread
from configs.errors import RewardError
from rewards.alignment.orm import BEFORE_PICTURE, QUESTION
from rewards.pictures import Preprocessing, QwenPatches
from rewards.registry import create_reward
from rollout.records import Prompt, Score, UInt8Array

PICTURE_SIZE = 384
GROUP_SIZE = 8
Prepare = Callable[[UInt8Array, str], Any]
_PROCESSORS: dict[str, Any] = {
    "grounding_dino, 384 to 800": GroundingDinoImageProcessorPil(),
    "git_vqa, 384 to 480": CLIPImageProcessorPil(size={"shortest_edge": 480}, crop_size={"height": 480, "width": 480}),
    "CLIPs, 384 to 224": CLIPImageProcessorPil(),
    "orm, 384": SiglipImageProcessorPil(size={"height": 384, "width": 384}),
    "vqa_score, 384 to 392": Qwen2VLImageProcessorPil(),
    "nsfw, 384 to 224": ViTImageProcessorPil(),
}


def measure_preprocessing(scope: Scope) -> Table:
    """Pictures a second of each processor, in turns."""
    num_pictures, num_rounds = scope.pick(quick=8, full=32), scope.pick(quick=2, full=5)
    pictures = np.random.default_rng(0).integers(0, 256, (num_pictures, PICTURE_SIZE, PICTURE_SIZE, 3), np.uint8)
    rows = []
    for name, processor in _PROCESSORS.items():
        is_qwen = isinstance(processor, Qwen2VLImageProcessorPil)
        prepare: Prepare = QwenPatches(processor) if is_qwen else Preprocessing.of(processor)
        speeds: dict[str, list[float]] = {"one": [], "batch": []}
        for number in range(num_rounds + 1):
            moments = [time.perf_counter()]
            for picture in pictures:
                processor(Image.fromarray(picture), return_tensors="pt")
            moments.append(time.perf_counter())
            prepare(pictures, "cpu")
            moments.append(time.perf_counter())
            if number:  # the first round warms both up
                for side, started_s, ended_s in zip(speeds, moments, moments[1:], strict=False):
                    speeds[side].append(num_pictures / (ended_s - started_s))
        rows.append((name, spread(speeds["one"]), spread(speeds["batch"]), ratio(speeds["batch"], speeds["one"])))
    return Table(
        "Preprocessing: pictures a second",
        f"{num_pictures} pictures of {PICTURE_SIZE} pixels, {scope.num_threads} thread(s), on a CPU. One: the "
        "processor of transformers, one picture after the other. Batch: the same pixels, made from a batch of bytes.",
        ("", "one", "batch", "batch against one"),
        tuple(rows),
    )


def measure_precision(scope: Scope) -> Table:
    """Scores in bfloat16 against those in float32, on random models."""
    num_groups, rows = scope.pick(quick=2, full=8), []
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="bicot-bench-") as directory:
        for name, save in (("hps", save_clip), ("orm", _save_llava), ("vqa_score", _save_qwen)):
            folder = Path(directory) / name
            save(folder)
            exact, rounded = (
                create_reward(name, {"model": str(folder), "dtype": dtype}, "cpu") for dtype in ("float32", "bfloat16")
            )
            moved, spreads, orders = [], [], []
            for number in range(num_groups):
                pictures = _similar_pictures(rng)
                prompts = [Prompt(f"p{number}", f"a {'red' if number % 2 else 'blue'} star")] * GROUP_SIZE
                before, after = (_values(reward.score(pictures, prompts)) for reward in (exact, rounded))
                moved.append(float(np.abs(after - before).max()))
                spreads.append(float(before.std()))
                orders.append(float(kendalltau(before, after).statistic))
            rows.append((name, f"{max(moved):.2g}", f"{np.mean(spreads):.2g}", f"{np.mean(orders):.3f}"))
    return Table(
        "bfloat16 against float32: what it does to scores",
        f"Random models of each class on a CPU, {num_groups} groups of {GROUP_SIZE} similar pictures. Trained weights "
        "and TF32 have not been measured: both need a GPU and the real weights.",
        ("", "largest change of a score", "spread in a group (float32)", "Kendall's tau in a group"),
        tuple(rows),
    )


def _values(answers: Sequence[Score | RewardError]) -> NDArray[np.float64]:
    """The numbers of the answers. Raises the first error among them."""
    for answer in answers:
        if isinstance(answer, RewardError):
            raise answer
    return np.array([answer.value for answer in answers if isinstance(answer, Score)])


def _similar_pictures(rng: np.random.Generator) -> UInt8Array:
    """A group, as one policy draws it: one picture, each time with other details."""
    base = rng.integers(0, 256, (1, 8, 8, 3))
    details = rng.integers(-40, 41, (GROUP_SIZE, 8, 8, 3))
    tiles = np.clip(base + details, 0, 255).astype(np.uint8)
    return tiles.repeat(12, axis=1).repeat(12, axis=2)


def save_clip(folder: Path) -> str:
    """A random CLIP with a tokenizer of a few words; returns its size."""
    words = ("<start>", "<unk>", "a", "red", "blue", "star", "above", "circle", "<end>")
    tokenizer = _word_tokenizer(words, "<unk>")
    ids = {word: index for index, word in enumerate(words)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", ids["<end>"])]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<end>").save_pretrained(folder)
    tower = {"num_hidden_layers": 6, "num_attention_heads": 6, "hidden_size": 384, "intermediate_size": 1536}
    config = CLIPConfig(
        vision_config={**tower, "image_size": 224, "patch_size": 32},
        text_config={**tower, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": ids["<end>"]},
        projection_dim=256,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    model.save_pretrained(folder)
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.0f} M parameters"


def _word_tokenizer(words: tuple[str, ...], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


_CHAT = ("[UNK]", "[PAD]", "<image>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")
_WORDS = (
    *_CHAT,
    *sorted(set(re.findall(r"\w+|[^\w\s]", f"Yes yes no figure show a red blue star {BEFORE_PICTURE} {QUESTION}"))),
)
_TEXT = {
    "vocab_size": len(_WORDS),
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.06,
}


def _save_chat_tokenizer(folder: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=_word_tokenizer(_WORDS, "[UNK]"),
        pad_token="[PAD]",
        unk_token="[UNK]",
        additional_special_tokens=list(_CHAT[2:]),
    ).save_pretrained(folder)


def _save_llava(folder: Path) -> None:
    vision = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": 96,
            "patch_size": 8,
            "vision_use_head": False,
            **vision,
        },
        text_config={"model_type": "qwen2", **_TEXT},
        image_token_index=_WORDS.index("<image>"),
        video_token_index=len(_WORDS) - 1,
        vision_aspect_ratio="pad",
    )
    torch.manual_seed(0)
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    _save_chat_tokenizer(folder)


def _save_qwen(folder: Path) -> None:
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": _TEXT["hidden_size"],
            "patch_size": 8,
            "window_size": 64,
            "fullatt_block_indexes": [3],
        },
        text_config={
            **_TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        image_token_id=_WORDS.index("<image>"),
        vision_start_token_id=_WORDS.index("<|vision_start|>"),
        vision_end_token_id=_WORDS.index("<|vision_end|>"),
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}).save_pretrained(
        folder
    )
    _save_chat_tokenizer(folder)
