"""T2I-CompBench's scorers: BLIP-VQA for attributes, CLIP for what is not spatial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from configs.errors import RewardError
from rewards.benchmarks.compbench.chunks import question_of
from rewards.benchmarks.pictures import in_batches
from rewards.benchmarks.protocol import Answer, Asked
from rewards.benchmarks.provenance import weights_of
from rewards.loading import load_tokenizer, model_errors, resolve_dtype
from rewards.loading.blip_vqa import load_blip_vqa, yes_probabilities
from rewards.loading.clip_embedder import load_clip
from rewards.loading.pretrained import fetch_file
from rewards.pictures import Preprocessing

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_QUESTIONS = 64
"""Of a pass through BLIP."""
NON_SPATIAL = "non_spatial"


class CompBenchScorer:
    """Both scorers, each loaded when a picture asks for it. Raises ModelError when one cannot be loaded."""

    def __init__(
        self,
        blip: str,
        tokenizer: str,
        clip: str,
        chunks_of: Callable[[str], Sequence[str]],
        chunks_source: str,
        device: str,
        batch_size: int,
    ) -> None:
        self._names = {"blip": blip, "tokenizer": tokenizer, "clip": clip}
        self._chunks_of, self._device, self._batch_size = chunks_of, device, batch_size
        self._dtype = resolve_dtype("auto", device, "float32")
        self._about: dict[str, Any] = {
            "blip": dict(weights_of(blip)),
            "clip": dict(weights_of(clip)),
            "chunks": chunks_source,
        }

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """P(yes) of each noun chunk, or the cosine."""
        attributes = [one for one in asked if one.item.tag != NON_SPATIAL]
        others = [one for one in asked if one.item.tag == NON_SPATIAL]
        if attributes:
            yield from self._ask_blip(attributes)
        if others:
            yield from self._compare(others)

    def _ask_blip(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        with model_errors("t2i_compbench", self._names["blip"]):
            model = load_blip_vqa(fetch_file(self._names["blip"]), self._dtype, self._device)
        with model_errors("t2i_compbench", self._names["tokenizer"]):
            tokenizer = load_tokenizer(self._names["tokenizer"])
        side = model.config.vision_config.image_size
        prepare = Preprocessing(lambda height, width: (side, side), Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD)
        for batch, pictures in in_batches(asked, self._batch_size):
            if isinstance(pictures, RewardError):
                yield batch[0], pictures
                continue
            pixels = prepare(pictures, self._device)
            chunks = [list(self._chunks_of(one.item.prompt)) for one in batch]
            rows = [(row, chunk) for row, own in enumerate(chunks) for chunk in own]
            chances: list[float] = []
            for start in range(0, len(rows), MAX_QUESTIONS):
                part = rows[start : start + MAX_QUESTIONS]
                own = pixels[torch.tensor([row for row, _ in part])]
                chances += yes_probabilities(model, tokenizer, own, [question_of(chunk) for _, chunk in part]).tolist()
            found: list[list[list[Any]]] = [[] for _ in batch]
            for (row, chunk), chance in zip(rows, chances, strict=True):
                found[row].append([chunk, chance])
            yield from ((one, {"chunks": own}) for one, own in zip(batch, found, strict=True))

    def _compare(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        name = self._names["clip"]
        clip, prepare = load_clip("t2i_compbench", name, name, self._dtype, self._device)
        for batch, pictures in in_batches(asked, self._batch_size):
            if isinstance(pictures, RewardError):
                yield batch[0], pictures
                continue
            cosines = clip.cosines(prepare(pictures, self._device), [one.item.prompt for one in batch])
            yield from ((one, {"cosine": cosine}) for one, cosine in zip(batch, cosines.tolist(), strict=True))

    def about(self) -> Mapping[str, Any]:
        """Hashes of the models, and where the chunks come from."""
        return self._about

    def close(self) -> None:
        """Its models go with it."""


def product_of(chances: Sequence[float]) -> float:
    """The official score of a picture: each chance to four digits, their product in float32, to four digits."""
    product = np.float32(1)
    for chance in chances:
        product *= np.float32(f"{chance:.4f}")
    return float(f"{product:.4f}")
