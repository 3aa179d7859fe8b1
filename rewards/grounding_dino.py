"""GroundingDINO: are the objects there, in their number, and where they should be? (Liu et al., arXiv 2303.05499.)

    nouns ─► caption "a cat. a dog."  ─┐
                                       ├─► GroundingDINO ─► score of every box for every token, boxes
    picture ───────────────────────────┘         │
                                                 ▼
    per noun: mean over its tokens ─► boxes above `box_threshold` ─► non-maximum suppression ─► Detections

What counts follows from the prompt, each in 0..1 (T2I-R1, section 3.3, which this departs from as listed):
  relation  (prompt has spatial_info)   0.2 for each of the two objects that is there + 0.6 x `relation_score`
  count     (prompt has numeracy_info)  mean over items of 1 - |found - wanted| / wanted, at least 0
  presence  (prompt has nouns)          share of the nouns that are there
Departures: a count that is nearly right earns nearly all, and not 0.2; a relation can earn 0.6, so that a perfect
picture scores 1; nouns of any number of words match; every locality has its rule (rewards/boxes.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

from configs.errors import ConfigError
from rewards.boxes import RELATIONS, FloatArray, relation_score, suppress_overlapping, to_corners
from rewards.image_input import check_pictures, to_pil
from rewards.pretrained import load_model, load_tokenizer, model_errors
from rollout.records import CountInfo, Prompt, Score, SpatialInfo, UInt8Array

DEFAULT_MODEL = "IDEA-Research/grounding-dino-tiny"
"""The Swin-T checkpoint (groundingdino_swint_ogc), which T2I-R1 uses."""
OBJECT_SHARE = 0.2
"""Of a relation's score, for each of its two objects; the rest is for the relation itself."""


@dataclass(frozen=True, slots=True)
class Detections:
    """The boxes of one noun in one picture, most confident first."""

    boxes: FloatArray
    """float [N, 4]: x0, y0, x1, y1 in pixels."""
    confidences: FloatArray
    """float [N], each above the threshold."""

    def __len__(self) -> int:
        return len(self.boxes)


class GroundingDinoReward:
    """Presence, relation or count of a prompt's objects, 0 to 1.

    model: hub id or folder of transformers' GroundingDinoForObjectDetection with tokenizer and image processor.
    box_threshold: a noun's boxes below it do not count. max_iou: of two boxes of a noun that overlap more, one counts.
    Raises ModelError when the model cannot be loaded, ConfigError for a threshold outside 0..1.
    """

    def __init__(
        self,
        device: str,
        model: str = DEFAULT_MODEL,
        dtype: str = "float32",
        box_threshold: float = 0.3,
        max_iou: float = 0.5,
    ) -> None:
        for name, value in (("box_threshold", box_threshold), ("max_iou", max_iou)):
            if not 0 < value < 1:
                raise ConfigError(f"rewards[].options.{name} of grounding_dino is {value}; set it between 0 and 1")
        self._box_threshold, self._max_iou = box_threshold, max_iou
        with model_errors("grounding_dino", model):
            detector = load_model(GroundingDinoForObjectDetection, model, dtype, device)
            self._tokenizer = load_tokenizer(model)
            self._image_processor = GroundingDinoImageProcessorPil.from_pretrained(model)
            if not self._tokenizer.is_fast:
                raise ValueError("its tokenizer gives no character offsets; a tokenizer.json is needed")
        assert isinstance(detector, GroundingDinoForObjectDetection)
        self._detector: GroundingDinoForObjectDetection = detector

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """Presence, relation or count for each picture; pictures uint8 [B, height, width, 3].

        Not applicable to a prompt without nouns, or with a locality that boxes cannot tell ("behind").
        """
        check_pictures(pictures, prompts)
        scores = [Score(0.0, applicable=False)] * len(prompts)
        indices = [i for i, prompt in enumerate(prompts) if wanted_nouns(prompt)]
        if indices:
            nouns = [wanted_nouns(prompts[i]) for i in indices]
            for i, found in zip(indices, self.detect(pictures[indices], nouns), strict=True):
                scores[i] = score_detections(prompts[i], found)
        return scores

    @torch.inference_mode()
    def detect(self, pictures: UInt8Array, nouns: Sequence[Sequence[str]]) -> list[dict[str, Detections]]:
        """noun -> Detections, for each picture and its own nouns."""
        captions = [". ".join(names) + "." for names in nouns]
        encoding = self._tokenizer(captions, padding=True, return_tensors="pt")
        max_tokens = self._detector.config.max_text_len
        if encoding.input_ids.shape[1] > max_tokens:
            raise ValueError(f"the nouns of a prompt take more than {max_tokens} tokens: {max(captions, key=len)}")
        device = self._detector.device
        # All pictures of a call have one size, so none is padded, and the batch changes no score.
        pixels = self._image_processor(to_pil(pictures), return_tensors="pt")
        outputs = self._detector(
            pixel_values=pixels.pixel_values.to(device, self._detector.dtype),
            pixel_mask=pixels.pixel_mask.to(device),
            input_ids=encoding.input_ids.to(device),
            attention_mask=encoding.attention_mask.to(device),
        )
        token_scores = outputs.logits.float().sigmoid().cpu()
        height, width = pictures.shape[1:3]
        found = []
        for i, names in enumerate(nouns):
            boxes = to_corners(outputs.pred_boxes[i].float().cpu().numpy(), width, height)
            tokens = noun_tokens(encoding, i, names)
            found.append({name: self._keep(boxes, token_scores[i], tokens[name]) for name in names})
        return found

    def _keep(self, boxes: FloatArray, token_scores: Tensor, tokens: Sequence[int]) -> Detections:
        """Boxes [N, 4] whose mean score over the noun's tokens is above the threshold, without duplicates."""
        confidences: FloatArray = token_scores[:, list(tokens)].mean(dim=1).numpy()
        candidates = np.flatnonzero(confidences > self._box_threshold)
        kept = candidates[suppress_overlapping(boxes[candidates], confidences[candidates], self._max_iou)]
        return Detections(boxes[kept], confidences[kept])


def noun_tokens(encoding: Any, row: int, nouns: Sequence[str]) -> dict[str, list[int]]:
    """noun -> positions of all its tokens in the row's caption "a. b." (a fast tokenizer's encoding)."""
    tokens: dict[str, list[int]] = {}
    start = 0
    for noun in nouns:
        positions = (encoding.char_to_token(row, at) for at in range(start, start + len(noun)))
        tokens[noun] = sorted({position for position in positions if position is not None})
        if not tokens[noun]:
            raise ValueError(f"the tokenizer makes no token of the noun '{noun}'")
        start += len(noun) + len(". ")
    return tokens


def wanted_nouns(prompt: Prompt) -> list[str]:
    """The nouns to look for, in order, each once; none if the reward does not apply to the prompt."""
    if prompt.spatial_info is not None:
        if _normalize(prompt.spatial_info.locality) not in RELATIONS:
            return []
        names = [prompt.spatial_info.obj1, prompt.spatial_info.obj2]
    elif prompt.numeracy_info:
        names = [item.obj_name for item in prompt.numeracy_info]
    else:
        names = list(prompt.nouns)
    return [name for name in dict.fromkeys(map(_normalize, names)) if name]


def score_detections(prompt: Prompt, found: dict[str, Detections]) -> Score:
    """The score of a picture in which these objects were found; `found` holds every noun of `wanted_nouns`."""
    if prompt.spatial_info is not None:
        value, parts = _score_relation(prompt.spatial_info, found)
    elif prompt.numeracy_info:
        value, parts = _score_counts(prompt.numeracy_info, found)
    else:
        value, parts = sum(1 for detections in found.values() if len(detections)) / len(found), {}
    seen: dict[str, Any] = {
        "found": [noun for noun, detections in found.items() if len(detections)],
        "missing": [noun for noun, detections in found.items() if not len(detections)],
    }
    boxes = {noun: detections.boxes.round(1).tolist() for noun, detections in found.items()}
    confidences = {noun: detections.confidences.round(3).tolist() for noun, detections in found.items()}
    return Score(value, parts=seen | parts | {"boxes": boxes, "confidences": confidences})


def _score_relation(wanted: SpatialInfo, found: dict[str, Detections]) -> tuple[float, dict[str, Any]]:
    first, second, locality = map(_normalize, (wanted.obj1, wanted.obj2, wanted.locality))
    if first == second:
        pair = list(found[first].boxes[:2])
        orders = [pair, pair[::-1]] if len(pair) == 2 else []
        num_present = len(pair)
    else:
        best = [found[noun].boxes[0] for noun in (first, second) if len(found[noun])]
        orders = [best] if len(best) == 2 else []
        num_present = len(best)
    # Two objects of one name stand as asked if they do in either order.
    relation = max((relation_score(RELATIONS[locality], *order) for order in orders), default=0.0)
    value = num_present * OBJECT_SHARE + (1 - 2 * OBJECT_SHARE) * relation
    return value, {locality: relation}


def _score_counts(wanted: Sequence[CountInfo], found: dict[str, Detections]) -> tuple[float, dict[str, Any]]:
    values, counts = [], {}
    for item in wanted:
        noun = _normalize(item.obj_name)
        num_found = len(found[noun])
        values.append(max(0.0, 1 - abs(num_found - item.num) / max(item.num, 1)))
        counts[noun] = f"{num_found} of {item.num}"
    return sum(values) / len(values), counts


def _normalize(text: str) -> str:
    """As the caption needs it: lower case, single spaces, none of the signs that end a noun there."""
    return " ".join(re.sub(r"[.?]", " ", text.lower()).split())
