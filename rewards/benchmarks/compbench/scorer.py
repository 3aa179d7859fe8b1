"""T2I-CompBench's scorers: BLIP-VQA for attributes, CLIP for actions, UniDet for places, and all three for complex.

Each looks at its own categories in turn, so that one model at a time is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from configs.errors import RewardError
from rewards.benchmarks.compbench.language import Language, question_of, spaceless
from rewards.benchmarks.compbench.objects import ObjectFinder
from rewards.benchmarks.compbench.spatial import has_classes, nouns_beside_prepositions, outer_nouns
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
ATTRIBUTES, SPATIAL, NON_SPATIAL = ("color", "shape", "texture"), ("spatial",), ("non_spatial",)
COMPLEX = "complex"


class CompBenchScorer:
    """The three scorers, each loaded when a picture asks for it. Raises ModelError when one cannot be loaded."""

    def __init__(
        self,
        names: Mapping[str, str],
        labels: Sequence[str],
        language: Language,
        device: str,
        batch_size: int,
    ) -> None:
        """names: of the models: blip, tokenizer, clip, unidet."""
        self._names, self._labels, self._language = names, labels, language
        self._device, self._batch_size = device, batch_size
        self._dtype = resolve_dtype("auto", device, "float32")
        self._about: dict[str, Any] = {
            **{name: dict(weights_of(names[name])) for name in ("blip", "clip", "unidet")},
            "language": language.source,
        }

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """What each scorer says of the pictures of its categories; of complex ones what all three say, at the end."""
        collected: dict[str, dict[str, Any]] = {}
        failed: set[str] = set()
        for tags, ask in ((SPATIAL, self._find_objects), (ATTRIBUTES, self._ask_blip), (NON_SPATIAL, self._compare)):
            own = [one for one in asked if one.item.tag in (*tags, COMPLEX) and one.file not in failed]
            for one, answer in ask(own) if own else ():
                if isinstance(answer, RewardError):
                    failed.add(one.file)
                    yield one, answer
                elif one.item.tag != COMPLEX:
                    yield one, answer
                else:
                    collected.setdefault(one.file, {}).update(answer)
        yield from ((one, collected[one.file]) for one in asked if one.file in collected.keys() - failed)

    def _find_objects(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """The objects, and which of them the prompt is about."""
        finder = ObjectFinder("t2i_compbench", self._names["unidet"], self._labels, self._device)
        for one, objects in finder.look(asked, self._batch_size):
            if isinstance(objects, RewardError):
                yield one, objects
                continue
            words = self._language.words(one.item.prompt)
            nouns = nouns_beside_prepositions(words) if one.item.tag == COMPLEX else outer_nouns(words)
            yield one, {"objects": objects, "nouns": nouns, "in_reach": has_classes(nouns, self._labels)}

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
            chunks = [self._language.chunks(one.item.prompt) for one in batch]
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
            cosines = clip.cosines(prepare(pictures, self._device), [self._text(one) for one in batch])
            yield from ((one, {"cosine": cosine}) for one, cosine in zip(batch, cosines.tolist(), strict=True))

    def _text(self, one: Asked) -> str:
        """What a picture is compared with: the prompt, of a complex one without its adjectives."""
        if one.item.tag != COMPLEX:
            return one.item.prompt
        return " ".join(spaceless(word) for word in self._language.words(one.item.prompt) if word.kind != "ADJ")

    def about(self) -> Mapping[str, Any]:
        """Hashes of the models, and where chunks and words come from."""
        return self._about

    def close(self) -> None:
        """Its models go with it."""


def product_of(chances: Sequence[float]) -> float:
    """The official score of a picture: each chance to four digits, their product in float32, to four digits."""
    product = np.float32(1)
    for chance in chances:
        product *= np.float32(f"{chance:.4f}")
    return float(f"{product:.4f}")
