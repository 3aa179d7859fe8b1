"""Geometry of bounding boxes: overlap, non-maximum suppression, and what "left of" or "near" mean.

A box is float [4]: x0, y0, x1, y1 in pixels, y pointing down. The rules read one box per object, the most
confident one:

    angle      between the line from centre 2 to centre 1 and the wanted direction:
               1 up to 45 degrees, falling linearly to 0 at 90
    clear      how far the centres are apart in the wanted direction: 0 up to a tenth of the two boxes' sides in that
               direction, GenEval's least distance (arXiv 2310.11513), 1 from twice that; or else a small object drawn
               a pixel from the centre of a large one stood "left of" it
    apart      min(1, 0.1 / IoU): two names for one object are not two objects (T2I-CompBench, arXiv 2307.06350)
    distinct   1 up to an IoU of 0.5, falling linearly to 0 at 0.8: the same for objects that may well overlap
    near       min(1, size / gap), with gap the distance between the nearest edges, 0 if the boxes touch,
               and size the mean of the two objects' sides, each the square root of its area

    left of, right of, above, below     angle x clear x apart
    on top of                           angle x clear x distinct: what lies on a thing may overlap it, but is not it
    next to, near                       near x distinct: a dog before a bench overlaps it, and is next to it
    on side of                          near x distinct x angle and clear of the nearer horizontal direction
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
Relation = Literal["left", "right", "above", "below", "on top", "near", "beside"]

RELATIONS: Mapping[str, Relation] = {
    "left of": "left",
    "on the left of": "left",
    "to the left of": "left",
    "right of": "right",
    "on the right of": "right",
    "to the right of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "on the bottom of": "below",
    "on bottom of": "below",
    "top of": "on top",
    "on top of": "on top",
    "on the top of": "on top",
    "near": "near",
    "next to": "near",
    "on side of": "beside",
    "on the side of": "beside",
    "beside": "beside",
}
"""Localities of the data -> relation of a box to another; all of T2I-R1's data are here."""

OVERLAP_OF_TWO = 0.1
"""IoU up to which two boxes surely hold two objects."""
MAYBE_TWO, SURELY_ONE = 0.5, 0.8
"""IoU up to which, and from which, boxes that may overlap hold two objects, or one."""
LEAST_STEP = 0.1
"""Of the two boxes' sides together: GenEval's least distance between the centres of a relation."""
_DIRECTIONS: Mapping[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "above": (0.0, -1.0),
    "on top": (0.0, -1.0),
    "below": (0.0, 1.0),
}


def to_corners(boxes: FloatArray, width: int, height: int) -> FloatArray:
    """Boxes [N, 4] as centre x, centre y, width, height in 0..1 to corners in pixels."""
    centers, sides = boxes[:, :2], boxes[:, 2:]
    corners: FloatArray = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    return corners * np.array([width, height, width, height], dtype=corners.dtype)


def intersection_over_union(first: FloatArray, second: FloatArray) -> float:
    """Overlap of two boxes, 0 to 1; 0 when neither has an area."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


def suppress_overlapping(boxes: FloatArray, confidences: FloatArray, max_iou: float) -> list[int]:
    """Non-maximum suppression: indices of the boxes to keep, most confident first.

    boxes [N, 4], confidences [N]. A box is dropped if it overlaps a kept one by more than `max_iou`.
    """
    kept: list[int] = []
    for candidate in np.argsort(-confidences, kind="stable"):
        if all(intersection_over_union(boxes[candidate], boxes[other]) <= max_iou for other in kept):
            kept.append(int(candidate))
    return kept


def relation_score(relation: Relation, first: FloatArray, second: FloatArray) -> float:
    """How well box `first` stands in `relation` to box `second`, 0 to 1; the rules are at the top of this file."""
    distinct = float(np.clip((SURELY_ONE - intersection_over_union(first, second)) / (SURELY_ONE - MAYBE_TWO), 0, 1))
    if relation in _DIRECTIONS:
        apart = distinct if relation == "on top" else _apart_score(first, second)
        return apart * _direction_score(first, second, _DIRECTIONS[relation])
    score = _near_score(first, second) * distinct
    if relation == "beside":
        score *= max(_direction_score(first, second, _DIRECTIONS[side]) for side in ("left", "right"))
    return score


def _direction_score(first: FloatArray, second: FloatArray, direction: tuple[float, float]) -> float:
    return _angle_score(first, second, direction) * _clear_score(first, second, direction)


def _clear_score(first: FloatArray, second: FloatArray, direction: tuple[float, float]) -> float:
    axis = 0 if direction[0] else 1
    step = abs((first[axis] + first[axis + 2]) - (second[axis] + second[axis + 2])) / 2
    least = LEAST_STEP * ((first[axis + 2] - first[axis]) + (second[axis + 2] - second[axis]))
    return float(np.clip((step - least) / least, 0, 1)) if least > 0 else 1.0


def _angle_score(first: FloatArray, second: FloatArray, direction: tuple[float, float]) -> float:
    dx, dy = ((first[:2] + first[2:]) - (second[:2] + second[2:])) / 2
    along = dx * direction[0] + dy * direction[1]
    across = abs(dx * direction[1]) + abs(dy * direction[0])
    if along <= 0:
        return 0.0
    return min(1.0, (90 - math.degrees(math.atan2(across, along))) / 45)


def _apart_score(first: FloatArray, second: FloatArray) -> float:
    iou = intersection_over_union(first, second)
    return min(1.0, OVERLAP_OF_TWO / iou) if iou > 0 else 1.0


def _near_score(first: FloatArray, second: FloatArray) -> float:
    gaps = np.maximum(0, np.maximum(first[:2] - second[2:], second[:2] - first[2:]))
    gap = math.hypot(*gaps)
    size = (math.sqrt(_area(first)) + math.sqrt(_area(second))) / 2
    return min(1.0, size / gap) if gap > 0 else 1.0


def _area(box: FloatArray) -> float:
    return float(max(0, box[2] - box[0]) * max(0, box[3] - box[1]))
