"""T2I-R1's rules of the detector; the list of what is wrong with them is in rewards/t2i_r1/__init__.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewards.objects.boxes import FloatArray, suppress_overlapping
from rewards.objects.captions import Caption, Phrase
from rewards.objects.detections import Candidates
from rollout.records import CountInfo, Prompt, Score, SpatialInfo

NO_NOUNS = 1.0
OBJECT_SHARE = 0.2
RELATION_SHARE = 0.5
WRONG_COUNT = 0.2
NEAR_DISTANCE = 150
"""Meant as pixels; the boxes it is compared with are in 0..1, so everything is near."""
OVERLAP_OF_TWO = 0.1
_SEPARATOR = " . "
_NEAR = ("next to", "on side of", "near")
_DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "on the right of": (0, -1),
    "right of": (0, -1),
    "on the left of": (0, 1),
    "left of": (0, 1),
    "on the bottom of": (1, -1),
    "below": (1, -1),
    "on the top of": (1, 1),
    "top of": (1, 1),
}
"""Locality -> axis (0 horizontal) and sign of the step from the first object to the second. Others earn 0."""


class T2IR1DetectionRules:
    """T2I-R1's detector score. max_iou: of two boxes of a noun that overlap more, one is counted."""

    def __init__(self, max_iou: float) -> None:
        self._max_iou = max_iou

    def caption(self, prompt: Prompt) -> Caption | None:
        """The prompt's own nouns, as they are written; None when it has none.

        A noun is asked for by its first and its last word, and its boxes are filed under these two: a noun of three
        words is another phrase than the one that is looked up later.
        """
        if not prompt.nouns:
            return None
        phrases, start = [], 0
        for noun in prompt.nouns:
            words = noun.strip().split(" ")
            end = start + len(noun)
            if len(words) == 1:
                spans: tuple[tuple[int, int], ...] = ((start, start + len(words[0])),)
            else:
                spans = ((start, start + len(words[0])), (end - len(words[-1]), end))
            name = " ".join(noun[begin - start : stop - start] for begin, stop in spans)
            phrases.append(Phrase(name, spans))
            start = end + len(_SEPARATOR)
        return Caption(_SEPARATOR.join(prompt.nouns) + ".", tuple(phrases))

    def score(self, prompt: Prompt, found: Mapping[str, Candidates], width: int, height: int) -> Score:
        """The score; the size of the picture is not asked for, since boxes stay in 0..1."""
        if not prompt.nouns:
            return Score(NO_NOUNS)
        phrases = {phrase: candidates for phrase, candidates in found.items() if len(candidates)}
        parts: dict[str, Any] = {
            "found": [noun for noun in prompt.nouns if noun in phrases],
            "missing": [noun for noun in prompt.nouns if noun not in phrases],
        }
        if prompt.task_type == "spatial":
            value, more = _score_relation(prompt.spatial_info, phrases)
        elif prompt.task_type == "numeracy":
            if not prompt.numeracy_info:
                return Score(None)
            value, more = _score_counts(prompt.numeracy_info, phrases, self._max_iou)
        else:
            value, more = _score_presence(prompt.nouns, phrases), {}
        return Score(value, parts=parts | more)


def _score_presence(nouns: Sequence[str], phrases: Mapping[str, Candidates]) -> float:
    return sum(noun in phrases for noun in nouns) / len(nouns)


def _score_relation(wanted: SpatialInfo | None, phrases: Mapping[str, Candidates]) -> tuple[float, dict[str, Any]]:
    if wanted is None:
        return 0.0, {}
    present = [phrases[noun] for noun in (wanted.obj1, wanted.obj2) if noun in phrases]
    if len(present) < 2:
        return OBJECT_SHARE * len(present), {}
    if wanted.obj1 == wanted.obj2:
        return 0.0, {}
    first, second = (_corners(candidates.boxes[int(np.argmax(candidates.confidences))]) for candidates in present)
    relation = position_score(wanted.locality, first, second)
    return 2 * OBJECT_SHARE + RELATION_SHARE * relation, {wanted.locality: relation}


def _corners(box: FloatArray) -> FloatArray:
    """x0, y0, x1, y1 in 0..1; in T2I-R1's order of operations, for its roundings."""
    low = box[:2] - box[2:] / 2
    corners: FloatArray = np.concatenate([low, box[2:] + low])
    return corners


def position_score(locality: str, first: FloatArray, second: FloatArray) -> float:
    """How well box `first` stands to box `second`, 0 to 1; both float [4], corners in 0..1."""
    # Halved before they are subtracted: of one and the same box the step must be exactly 0.
    step = (second[:2] + second[2:]) / 2 - (first[:2] + first[2:]) / 2
    if locality in _NEAR:
        return 1.0 if np.abs(step).min() < NEAR_DISTANCE else NEAR_DISTANCE / float(np.abs(step).max())
    if locality not in _DIRECTIONS:
        return 0.0
    axis, sign = _DIRECTIONS[locality]
    if sign * step[axis] <= 0 or abs(step[axis]) <= abs(step[1 - axis]):
        return 0.0
    shared = float(np.prod(np.maximum(0, np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]))))
    union = float(np.prod(first[2:] - first[:2])) + float(np.prod(second[2:] - second[:2])) - shared
    if union == 0:
        # There it is 0 / 0, and NaN is neither below the threshold nor above it.
        return 0.0
    iou = shared / union
    return 1.0 if iou < OVERLAP_OF_TWO else OVERLAP_OF_TWO / iou


def _score_counts(
    wanted: Sequence[CountInfo], phrases: Mapping[str, Candidates], max_iou: float
) -> tuple[float, dict[str, Any]]:
    value, counts = 0.0, {}
    for item in wanted:
        num_found = _count(phrases[item.obj_name], max_iou) if item.obj_name in phrases else 0
        if num_found:
            value += (1.0 if num_found == item.num else WRONG_COUNT) / len(wanted)
        counts[item.obj_name] = f"{num_found} of {item.num}"
    return value, counts


def _count(candidates: Candidates, max_iou: float) -> int:
    """Boxes left after a suppression that takes centre and size for corners: duplicates mostly stay."""
    return len(suppress_overlapping(candidates.boxes, candidates.confidences, max_iou))
