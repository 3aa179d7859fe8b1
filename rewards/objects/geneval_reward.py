"""GenEval as a reward: strict as its benchmark, or partial, which is graded. The rules: rewards/objects/geneval.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from configs.errors import RewardError
from rewards.loading import model_errors, resolve_dtype
from rewards.objects.geneval import MIN_SCORE, judge, read_record
from rewards.objects.geneval_detector import ColorNamer, ObjectDetector
from rollout.records import Prompt, Score, UInt8Array

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
SHORT_SIDE = 800
"""Pixels: to which GenEval enlarges pictures."""
GPU_DTYPE = "tf32"
"""An object counts above a threshold, so that a small error of its score can be a whole object."""


class GenEvalReward:
    """1 or 0 (strict), or the partial score, of each picture whose prompt has GenEval's record in its metadata.

    model: hub id or folder of transformers' Mask2FormerForUniversalSegmentation on COCO's classes; clip: of CLIPModel,
    which names colours. strict: GenEval's own verdict; else it is graded, for groups that would mostly be all wrong.
    short_side: pixels to which pictures are enlarged for the detector.
    Raises ModelError when a model cannot be loaded.
    """

    def __init__(
        self,
        device: str,
        model: str = DETECTOR,
        clip: str = CLIP,
        dtype: str = "auto",
        strict: bool = False,
        short_side: int = SHORT_SIDE,
    ) -> None:
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        self._strict = strict
        with model_errors("geneval", model):
            self._detect = ObjectDetector(model, dtype, device, short_side)
        with model_errors("geneval", clip):
            self._name_colors = ColorNamer(clip, dtype, device)

    @staticmethod
    def applies_to(prompt: Prompt, options: Mapping[str, Any]) -> bool:
        """Whether the prompt's metadata have GenEval's `include`."""
        return bool(prompt.metadata.get("include"))

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score | RewardError]:
        """The verdict on each picture; pictures uint8 [B, height, width, 3].

        Parts: what is wrong, and the objects that were found with their boxes. Not applicable to a prompt without a
        record; a RewardError for a malformed one, and for a class that the detector does not know.
        """
        asked = [i for i, prompt in enumerate(prompts) if prompt.metadata.get("include")]
        found = dict(zip(asked, self._detect(pictures[asked]) if asked else [], strict=True))
        return [
            self._score_one(pictures[i], prompt, found[i]) if i in found else Score(None)
            for i, prompt in enumerate(prompts)
        ]

    def _score_one(self, picture: UInt8Array, prompt: Prompt, found: Mapping[str, Any]) -> Score | RewardError:
        try:
            record = read_record(prompt.metadata)
        except ValueError as error:
            return RewardError(f"reward 'geneval': prompt {prompt.prompt_id}: metadata: {error}")
        assert record is not None
        unknown = sorted({entry.name for entry in (*record.include, *record.exclude)} - set(self._detect.names))
        if unknown:
            return RewardError(
                f"reward 'geneval': prompt {prompt.prompt_id}: its detector knows no '{unknown[0]}'; it knows COCO's "
                "80 classes"
            )
        verdict = judge(record, found, partial(self._name_colors, picture))
        seen = {
            name: [[round(value, 3) for value in (*item.box, item.score)] for item in objects if item.score > MIN_SCORE]
            for name, objects in found.items()
        }
        value = float(verdict.correct) if self._strict else verdict.partial
        parts = {"correct": verdict.correct, "partial": verdict.partial, "wrong": list(verdict.reasons)}
        return Score(value, parts=parts | {"found": {name: boxes for name, boxes in seen.items() if boxes}})
