"""GroundingDINO: are the objects there, in their number, and where they should be? (Liu et al., arXiv 2303.05499.)

nouns ─► caption "a cat. a dog."  ─┐
                                   ├─► GroundingDINO ─► score of every box for every token, boxes
picture ───────────────────────────┘         │
                                             ▼
per noun: mean over its tokens ─► boxes above `box_threshold`: Candidates ─► Score (rewards/objects/detections.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

from configs.errors import ConfigError
from rewards.loading import load_model, load_tokenizer, model_errors, resolve_dtype
from rewards.objects.boxes import FloatArray
from rewards.objects.captions import Caption, Phrase, phrase_tokens
from rewards.objects.detections import Candidates, DetectionRules, wanted_nouns
from rewards.objects.passes import passes
from rewards.pictures import Preprocessing
from rewards.t2i_r1.grounding_dino import T2IR1DetectionRules
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "IDEA-Research/grounding-dino-tiny"
"""The Swin-T checkpoint (groundingdino_swint_ogc), which T2I-R1 uses."""
GPU_DTYPE = "tf32"
"""A box counts above a threshold, so that a small error of its score can be a whole object."""


class Rules(Protocol):
    """What to look for in a picture, and what the boxes found say of its prompt."""

    def caption(self, prompt: Prompt) -> Caption | None:
        """What the detector is asked; None when there is nothing to look for."""

    def score(self, prompt: Prompt, found: Mapping[str, Candidates], width: int, height: int) -> Score:
        """The score of a picture of this size in pixels; `found` is empty when there was nothing to look for."""


class GroundingDinoReward:
    """Presence, relation or count of a prompt's objects, 0 to 1.

    model: hub id or folder of transformers' GroundingDinoForObjectDetection with tokenizer and image processor.
    box_threshold: a noun's boxes below it do not count. max_iou: of two boxes of a noun that overlap more, one counts.
    t2i_r1_compat: score by T2I-R1's own rules, defects included (rewards/t2i_r1/grounding_dino.py).
    Raises ModelError when the model cannot be loaded, ConfigError for a threshold outside 0..1.
    """

    def __init__(
        self,
        device: str,
        model: str = DEFAULT_MODEL,
        dtype: str = "auto",
        box_threshold: float = 0.3,
        max_iou: float = 0.5,
        t2i_r1_compat: bool = False,
    ) -> None:
        for name, value in (("box_threshold", box_threshold), ("max_iou", max_iou)):
            if not 0 < value < 1:
                raise ConfigError(f"rewards[].options.{name} of grounding_dino is {value}; set it between 0 and 1")
        self._box_threshold = box_threshold
        self._rules: Rules = T2IR1DetectionRules(max_iou) if t2i_r1_compat else DetectionRules(max_iou)
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        with model_errors("grounding_dino", model):
            detector = load_model(GroundingDinoForObjectDetection, model, dtype, device)
            self._tokenizer = load_tokenizer(model)
            self._prepare = Preprocessing.of(GroundingDinoImageProcessorPil.from_pretrained(model))
            if not self._tokenizer.is_fast:
                raise ValueError("its tokenizer gives no character offsets; a tokenizer.json is needed")
        self._detector: GroundingDinoForObjectDetection = detector

    @staticmethod
    def applies_to(prompt: Prompt, options: Mapping[str, Any]) -> bool:
        """Whether there is something to look for. T2I-R1's rules have a number for every prompt."""
        return bool(options.get("t2i_r1_compat") or wanted_nouns(prompt))

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Tensor:
        """Pixels as the model takes them, on its device: what can be done while the batch before is scored."""
        return self._prepare(pictures, self._detector.device)

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: Tensor | None = None) -> list[Score]:
        """Presence, relation or count for each picture; pictures uint8 [B, height, width, 3].

        Not applicable to a prompt without nouns, or with more of them than the detector reads.
        Parts: objects found and missing, and each object's boxes in pixels with their confidences.
        """
        captions = {i: caption for i, prompt in enumerate(prompts) if (caption := self._rules.caption(prompt))}
        too_long = {i for i, caption in captions.items() if self._num_tokens(caption) > self._max_tokens}
        asked = [i for i in captions if i not in too_long]
        found: list[dict[str, Candidates]] = [{} for _ in prompts]
        if asked:
            pixels = self.prepare(pictures, prompts) if prepared is None else prepared
            pixels = pixels if len(asked) == len(prompts) else pixels[asked]
            for i, candidates in zip(asked, self.detect(pixels, [captions[i] for i in asked]), strict=True):
                found[i] = candidates
        height, width = pictures.shape[1:3]
        reason = f"its nouns take more than {self._max_tokens} tokens"
        return [
            Score(None, parts={"not applicable": reason})
            if i in too_long
            else self._rules.score(prompt, found[i], width, height)
            for i, prompt in enumerate(prompts)
        ]

    @property
    def _max_tokens(self) -> int:
        return int(self._detector.config.max_text_len)

    def _num_tokens(self, caption: Caption) -> int:
        return len(self._tokenizer(caption.text).input_ids)

    @torch.inference_mode()
    def detect(self, pixels: Tensor, captions: Sequence[Caption]) -> list[dict[str, Candidates]]:
        """Phrase -> its Candidates, for each of the pictures that `prepare` made into pixels, and its own caption."""
        slices = passes(len(pixels), self._detector.device)
        return [found for some in slices for found in self._detect(pixels[some], captions[some])]

    def _detect(self, pixels: Tensor, captions: Sequence[Caption]) -> list[dict[str, Candidates]]:
        encoding = self._tokenizer([caption.text for caption in captions], padding=True, return_tensors="pt")
        device = self._detector.device
        # All pictures of a call have one size, so none is padded, and the batch changes no score.
        outputs = self._detector(
            pixel_values=pixels.to(self._detector.dtype),
            pixel_mask=torch.ones(len(pixels), *pixels.shape[2:], dtype=torch.long, device=device),
            input_ids=encoding.input_ids.to(device),
            attention_mask=encoding.attention_mask.to(device),
        )
        token_scores = outputs.logits.float().sigmoid().cpu()
        boxes = outputs.pred_boxes.float().cpu().numpy()
        return [
            collect_candidates(encoding, i, caption.phrases, boxes[i], token_scores[i], self._box_threshold)
            for i, caption in enumerate(captions)
        ]


def collect_candidates(
    encoding: Any, row: int, phrases: Sequence[Phrase], boxes: FloatArray, token_scores: Tensor, threshold: float
) -> dict[str, Candidates]:
    """Phrase -> the boxes whose mean score over its tokens is above the threshold, in the detector's order.

    encoding: of all captions, by a fast tokenizer; row: of this picture's. boxes: [N, 4], centre x, centre y, width,
    height in 0..1. token_scores: float [N, tokens], each 0..1.
    """
    found: dict[str, Candidates] = {}
    for phrase in phrases:
        tokens = phrase_tokens(encoding, row, phrase)
        if tokens:
            confidences: FloatArray = token_scores[:, tokens].mean(dim=1).numpy()
        else:
            confidences = np.zeros(len(boxes), dtype=np.float32)
        above = np.flatnonzero(confidences > threshold)
        candidates = Candidates(boxes[above], confidences[above])
        found[phrase.name] = found[phrase.name].joined(candidates) if phrase.name in found else candidates
    return found
