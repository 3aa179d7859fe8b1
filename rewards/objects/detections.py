"""What a detector's boxes say of a prompt: are the objects there, in their number, and where they should be?

    Candidates of each noun ─► non-maximum suppression ─► Detections ─► presence, relation or count

What counts follows from the prompt, each in 0..1 (T2I-R1, section 3.3, which this departs from as listed):
  relation  (prompt has spatial_info)   0.2 for each of the two objects that is there + 0.6 x `relation_score`
  count     (prompt has numeracy_info)  mean over items of 1 - |found - wanted| / wanted, at least 0
  presence  (prompt has nouns)          share of the nouns that are there
Departures: a count that is nearly right earns nearly all, and not 0.2; a relation can earn 0.6, so that a perfect
picture scores 1; nouns of any number of words match; every locality has its rule (`boxes.py` beside this file).
T2I-R1's own rules are in rewards/t2i_r1/grounding_dino.py, with a list of what differs in rewards/t2i_r1/__init__.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.objects.boxes import RELATIONS, FloatArray, relation_score, suppress_overlapping, to_corners
from rewards.objects.captions import Caption, caption_of
from rollout.records import CountInfo, Prompt, Score, SpatialInfo

OBJECT_SHARE = 0.2
"""Of a relation's score, for each of its two objects; the rest is for the relation itself."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The boxes of one noun as the detector gives them, duplicates and all, in its order."""

    boxes: FloatArray
    """float [N, 4]: centre x, centre y, width, height in 0..1."""
    confidences: FloatArray
    """float [N], each above the threshold."""

    def __len__(self) -> int:
        return len(self.boxes)

    def joined(self, other: Candidates) -> Candidates:
        """These, then the other's."""
        return Candidates(
            np.concatenate([self.boxes, other.boxes]), np.concatenate([self.confidences, other.confidences])
        )


@dataclass(frozen=True, slots=True)
class Detections:
    """The boxes of one noun in one picture, most confident first."""

    boxes: FloatArray
    """float [N, 4]: x0, y0, x1, y1 in pixels."""
    confidences: FloatArray
    """float [N], each above the threshold."""

    def __len__(self) -> int:
        return len(self.boxes)


class DetectionRules:
    """The rules at the top of this file, on what a detector gives.

    max_iou: of two boxes of a noun that overlap more, one counts.
    """

    def __init__(self, max_iou: float) -> None:
        self._max_iou = max_iou

    def caption(self, prompt: Prompt) -> Caption | None:
        """The nouns of the prompt, or None when it has none."""
        nouns = wanted_nouns(prompt)
        return caption_of(nouns) if nouns else None

    def score(self, prompt: Prompt, found: Mapping[str, Candidates], width: int, height: int) -> Score:
        """The score of a picture of this size in pixels; not applicable when nothing was looked for."""
        if not found:
            return Score(None)
        objects = {noun: drop_duplicates(boxes, width, height, self._max_iou) for noun, boxes in found.items()}
        return score_detections(prompt, objects)


def drop_duplicates(candidates: Candidates, width: int, height: int, max_iou: float) -> Detections:
    """One box an object, in a picture of this size in pixels: of two that overlap more than `max_iou`, the surer."""
    boxes = to_corners(candidates.boxes, width, height)
    kept = suppress_overlapping(boxes, candidates.confidences, max_iou)
    return Detections(boxes[kept], candidates.confidences[kept])


def wanted_nouns(prompt: Prompt) -> list[str]:
    """The nouns to look for, in order, each once; none if the reward does not apply to the prompt."""
    if prompt.spatial_info is not None:
        names = [prompt.spatial_info.obj1, prompt.spatial_info.obj2]
    elif prompt.numeracy_info:
        names = [item.obj_name for item in prompt.numeracy_info]
    else:
        names = list(prompt.nouns)
    return [name for name in dict.fromkeys(map(normalize, names)) if name]


def score_detections(prompt: Prompt, found: Mapping[str, Detections]) -> Score:
    """The score of a picture in which these objects were found; `found` holds every noun of `wanted_nouns`."""
    if prompt.spatial_info is not None and normalize(prompt.spatial_info.locality) in RELATIONS:
        value, parts = _score_relation(prompt.spatial_info, found)
    elif prompt.numeracy_info and prompt.spatial_info is None:
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


def _score_relation(wanted: SpatialInfo, found: Mapping[str, Detections]) -> tuple[float, dict[str, Any]]:
    first, second, locality = map(normalize, (wanted.obj1, wanted.obj2, wanted.locality))
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


def _score_counts(wanted: Sequence[CountInfo], found: Mapping[str, Detections]) -> tuple[float, dict[str, Any]]:
    values, counts = [], {}
    for item in wanted:
        noun = normalize(item.obj_name)
        num_found = len(found[noun])
        values.append(max(0.0, 1 - abs(num_found - item.num) / max(item.num, 1)))
        counts[noun] = f"{num_found} of {item.num}"
    return sum(values) / len(values), counts


def normalize(text: str) -> str:
    """As the caption needs it: lower case, single spaces, none of the signs that end a noun there."""
    return " ".join(re.sub(r"[.?]", " ", text.lower()).split())
