"""GroundingDINO: are the objects there, in their number, and where they should be? (Liu et al., arXiv 2303.05499.)

nouns ─► caption "a cat. a dog."  ─┐
                                   ├─► GroundingDINO ─► score of every box for every token, boxes
picture ───────────────────────────┘         │
                                             ▼
per noun: mean over its tokens ─► boxes above `box_threshold`: Candidates ─► Score (rewards/objects/detections.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

from configs.errors import ConfigError
from rewards.loading import load_model, load_tokenizer, model_errors
from rewards.objects.boxes import FloatArray
from rewards.objects.detections import Candidates, drop_duplicates, score_detections, wanted_nouns
from rewards.pictures import check_pictures, to_pil
from rewards.t2i_r1 import rules as t2i_r1
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "IDEA-Research/grounding-dino-tiny"
"""The Swin-T checkpoint (groundingdino_swint_ogc), which T2I-R1 uses."""


class GroundingDinoReward:
    """Presence, relation or count of a prompt's objects, 0 to 1.

    model: hub id or folder of transformers' GroundingDinoForObjectDetection with tokenizer and image processor.
    box_threshold: a noun's boxes below it do not count. max_iou: of two boxes of a noun that overlap more, one counts.
    t2i_r1_compat: score by T2I-R1's own rules, defects included (rewards/t2i_r1/rules.py).
    Raises ModelError when the model cannot be loaded, ConfigError for a threshold outside 0..1.
    """

    def __init__(
        self,
        device: str,
        model: str = DEFAULT_MODEL,
        dtype: str = "float32",
        box_threshold: float = 0.3,
        max_iou: float = 0.5,
        t2i_r1_compat: bool = False,
    ) -> None:
        for name, value in (("box_threshold", box_threshold), ("max_iou", max_iou)):
            if not 0 < value < 1:
                raise ConfigError(f"rewards[].options.{name} of grounding_dino is {value}; set it between 0 and 1")
        self._box_threshold, self._max_iou = box_threshold, max_iou
        self._t2i_r1_compat = t2i_r1_compat
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
        Parts: objects found and missing, and each object's boxes in pixels with their confidences.
        """
        check_pictures(pictures, prompts)
        nouns = [self._nouns(prompt) for prompt in prompts]
        asked = [i for i, names in enumerate(nouns) if names]
        found: list[dict[str, Candidates]] = [{} for _ in prompts]
        if asked:
            for i, candidates in zip(asked, self.detect(pictures[asked], [nouns[i] for i in asked]), strict=True):
                found[i] = candidates
        height, width = pictures.shape[1:3]
        return [
            self._score_one(prompt, candidates, width, height)
            for prompt, candidates in zip(prompts, found, strict=True)
        ]

    def _nouns(self, prompt: Prompt) -> list[str]:
        return t2i_r1.detector_nouns(prompt) if self._t2i_r1_compat else wanted_nouns(prompt)

    def _score_one(self, prompt: Prompt, found: dict[str, Candidates], width: int, height: int) -> Score:
        if self._t2i_r1_compat:
            return t2i_r1.score_candidates(prompt, found, self._max_iou)
        if not found:
            return Score(None)
        objects = {noun: drop_duplicates(boxes, width, height, self._max_iou) for noun, boxes in found.items()}
        return score_detections(prompt, objects)

    @torch.inference_mode()
    def detect(self, pictures: UInt8Array, nouns: Sequence[Sequence[str]]) -> list[dict[str, Candidates]]:
        """noun -> its Candidates, for each picture and its own nouns."""
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
        boxes = outputs.pred_boxes.float().cpu().numpy()
        found = []
        for i, names in enumerate(nouns):
            tokens = noun_tokens(encoding, i, names)
            found.append({name: self._candidates(boxes[i], token_scores[i], tokens[name]) for name in names})
        return found

    def _candidates(self, boxes: FloatArray, token_scores: Tensor, tokens: Sequence[int]) -> Candidates:
        """Boxes [N, 4] whose mean score over the noun's tokens is above the threshold."""
        confidences: FloatArray = token_scores[:, list(tokens)].mean(dim=1).numpy()
        above = np.flatnonzero(confidences > self._box_threshold)
        return Candidates(boxes[above], confidences[above])


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
