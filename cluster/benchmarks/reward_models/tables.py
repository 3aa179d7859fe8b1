"""What the rewards' models cost outside the model, and what another precision does to their scores.

rewards         each reward by itself: one picture after the other, against batches, with a small model of its class
passes          GenEval's detector: eight pictures in one pass, against one a pass
preprocessing   one picture after the other through transformers' own processor, against the batch of `Preprocessing`
precision       bfloat16 against float32 on random models of each class: how far scores move beside the spread within
                a group, and how many pairs of a group's pictures change their order
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import kendalltau
from transformers import (
    CLIPImageProcessorPil,
    GroundingDinoImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from cluster.benchmarks.report import Scope, Table, ratio, spread
from cluster.benchmarks.reward_models.detector_passes import measure_passes
from cluster.benchmarks.reward_models.small_models import SMALL_MODELS, save_clip, save_llava, save_qwen
from configs.errors import ConfigError, RewardError
from rewards.calling import LoadedReward
from rewards.pictures import Preprocessing, QwenPatches
from rewards.registry import create_reward
from rollout.records import Prompt, Score, UInt8Array
from rollout.shapes import load_split
from rollout.shapes.world import IMAGE_SIZE

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


WITHOUT_FILES: Final = ("ocr", "open_nsfw", "shapes")
"""Rewards whose weights are in a package, or that have none."""
PROMPT: Final = Prompt(
    "bench",
    "a red cat above a blue dog",
    nouns=("cat", "dog"),
    attr_nouns=("a red cat", "a blue dog"),
    metadata={
        "tag": "colors",
        "include": [{"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1}],
        "ocr_text": "red cat",
    },
)


def measure(scope: Scope) -> list[Table]:
    """All four tables."""
    return [measure_rewards(scope), measure_passes(scope), measure_preprocessing(scope), measure_precision(scope)]


def measure_rewards(scope: Scope) -> Table:
    """Pictures a second of each reward, one after the other and in batches, in turns."""
    num_pictures, num_rounds = scope.pick(quick=4, full=32), scope.pick(quick=2, full=5)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bicot-bench-") as directory:
        for name, reward in _all_rewards(Path(directory)):
            side = IMAGE_SIZE if name == "shapes" else PICTURE_SIZE
            pictures = np.random.default_rng(0).integers(0, 256, (num_pictures, side, side, 3), np.uint8)
            prompts = load_split("train", num_pictures) if name == "shapes" else [PROMPT] * num_pictures
            speeds: dict[str, list[float]] = {"one": [], "batch": []}
            for number in range(num_rounds + 1):
                moments = [time.perf_counter()]
                alone = [reward.score(pictures[i : i + 1], prompts[i : i + 1])[0] for i in range(num_pictures)]
                moments.append(time.perf_counter())
                together = reward.score(pictures, prompts)
                moments.append(time.perf_counter())
                np.testing.assert_allclose(_values(together), _values(alone), atol=1e-3)
                if number:  # the first round warms both up
                    for key, started_s, ended_s in zip(speeds, moments, moments[1:], strict=False):
                        speeds[key].append(num_pictures / (ended_s - started_s))
            rows.append((name, spread(speeds["one"]), spread(speeds["batch"]), ratio(speeds["batch"], speeds["one"])))
    return Table(
        "Each reward: pictures a second",
        f"{num_pictures} pictures of noise, {PICTURE_SIZE} pixels a side ({IMAGE_SIZE} for `shapes`), "
        f"{scope.num_threads} thread(s), on a CPU; small random models that see pictures in their published size, real "
        "weights for `ocr` and `open_nsfw`. Both sides give the same scores.",
        ("", "one at a time", "batch", "batch against one"),
        tuple(rows),
    )


def _all_rewards(directory: Path) -> Iterator[tuple[str, LoadedReward]]:
    for name, save in SMALL_MODELS.items():
        torch.manual_seed(0)
        folder = directory / name
        folder.mkdir()
        yield name, create_reward(name, save(folder), "cpu")
    for name in WITHOUT_FILES:
        try:
            yield name, create_reward(name, {}, "cpu")
        except ConfigError as error:  # of the extra `rewards`
            print(error)


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


LARGER_CLIP: Final[dict[str, Any]] = {
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "hidden_size": 384,
    "intermediate_size": 1536,
}
"""23 M parameters."""
_WIDE_RANGE: Final[dict[str, Callable[[Path], Any]]] = {
    "hps": partial(save_clip, **LARGER_CLIP),
    "orm": partial(save_llava, image_size=96, patch_size=8),
    "vqa_score": partial(save_qwen, patch_size=8, max_side=96),
}
"""Reward -> a model whose scores differ between pictures by more than rounding."""


def measure_precision(scope: Scope) -> Table:
    """Scores in bfloat16 against those in float32, on random models."""
    num_groups, rows = scope.pick(quick=2, full=8), []
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="bicot-bench-") as directory:
        for name, save in _WIDE_RANGE.items():
            folder = Path(directory) / name
            torch.manual_seed(0)
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
