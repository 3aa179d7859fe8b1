"""GenEval's scorer: pictures of one size go through the detector as a batch, all objects of a class through CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from configs.errors import RewardError
from rewards.benchmarks.geneval.rules import as_answer
from rewards.benchmarks.pictures import in_batches
from rewards.benchmarks.protocol import Answer, Asked
from rewards.benchmarks.provenance import weights_of
from rewards.loading import model_errors, resolve_dtype
from rewards.objects.geneval import FoundObject, Record, kept_objects, read_record
from rewards.objects.geneval_detector import ColorNamer, ObjectDetector
from rewards.objects.geneval_reward import GPU_DTYPE
from rollout.records import UInt8Array

MIN_KEPT_SCORE = 0.05
"""Weaker objects are not kept: the rules look at those above 0.3, or 0.9."""


class GenEvalScorer:
    """Mask2Former and CLIP. Raises ModelError when one cannot be loaded."""

    def __init__(self, detector: str, clip: str, device: str, short_side: int, batch_size: int) -> None:
        dtype = resolve_dtype("auto", device, GPU_DTYPE)
        with model_errors("geneval", detector):
            self._detect = ObjectDetector(detector, dtype, device, short_side)
        with model_errors("geneval", clip):
            self._name_colors = ColorNamer(clip, dtype, device)
        self._batch_size = batch_size
        self._about = {
            "detector": dict(weights_of(detector)),
            "clip": dict(weights_of(clip)),
            "short_side": short_side,
            "dtype": dtype,
        }

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """Objects with boxes and scores, and the colours of those whose prompt names one."""
        for batch, pictures in in_batches(asked, self._batch_size):
            if isinstance(pictures, RewardError):
                yield batch[0], pictures
                continue
            for one, picture, found in zip(batch, pictures, self._detect(pictures), strict=True):
                yield one, self._answer(one, picture, found)

    def _answer(self, one: Asked, picture: UInt8Array, found: Mapping[str, Sequence[FoundObject]]) -> Answer:
        record = read_record(one.item.record)
        assert record is not None
        colors = self._colors(record, picture, found)
        return as_answer(
            {
                name: [(item, colors.get(id(item))) for item in objects if item.score >= MIN_KEPT_SCORE]
                for name, objects in found.items()
            }
        )

    def _colors(
        self, record: Record, picture: UInt8Array, found: Mapping[str, Sequence[FoundObject]]
    ) -> dict[int, str]:
        colors: dict[int, str] = {}
        for name in {wanted.name for wanted in record.include if wanted.color is not None}:
            objects = kept_objects(found.get(name, ()), record.min_score)
            if objects:
                named = self._name_colors(np.ascontiguousarray(picture), name, objects)
                colors |= {id(item): color for item, color in zip(objects, named, strict=True)}
        return colors

    def about(self) -> Mapping[str, Any]:
        """Hashes of both models."""
        return self._about

    def close(self) -> None:
        """Its models go with it."""
