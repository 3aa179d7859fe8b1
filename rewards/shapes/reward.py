"""The reward of the shapes world: are the demanded objects there, as demanded, and nothing else?

    score = objects · (1 + relation) / 2 · (1 + count) / 2 · precision        in [0, 1]

The relation factor only where the prompt has a relation, the count factor only where it counts.
  objects    mean over the demanded objects of `_match_value` under the best one-to-one matching;
  relation   1 if the first two objects were found and stand as asked, else 0;
  count      1 − |drawn − demanded| / demanded, at least 0;
  precision  demanded / drawn where more was drawn than demanded, else 1. A blob counts as as many
             objects as it has room for, and specks add up, so that filling the picture never pays.
Each part is graded where it can be, so that half-right pictures of a group differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from configs.errors import BicotError, RewardError
from rewards.shapes.detector import MIN_AREA, DetectedObject, Drawing, detect_objects
from rollout.records import Prompt, Score, UInt8Array
from rollout.shapes.world import NEAR, SPRITE_SIZE, ExpectedObject, demanded_relation, expected_objects

_ZERO_IOU, _FULL_IOU = 0.5, 0.8
"""Overlap with the nearest shape from which a form earns anything, and from which it earns all."""
_ZERO_VIVIDNESS, _FULL_VIVIDNESS = 0.2, 0.5
_MIXED_COLOR_FACTOR = 0.5
_MIN_SHIFT = 12.0
"""Pixels between two centres, from which one is left of, or above, the other."""
_MAX_NEAR = 42.0
"""Pixels between the centres of two objects in neighbouring cells, at most."""
_MAX_OBJECT_AREA = 1.2 * SPRITE_SIZE**2
_FREE_SPECK_AREA = MIN_AREA
"""Pixels of specks that cost nothing: what a VQ decoder leaves on its own."""
_SPECK_AREA_PER_OBJECT = 200.0


class ShapesReward:
    """Scores pictures of the shapes world; see the top of this file. Implements `rewards.protocol.Reward`."""

    def __init__(self, device: str = "cpu") -> None:
        """`device` is what every reward is given; this one computes on the CPU, whatever it says."""

    @staticmethod
    def applies_to(prompt: Prompt, options: Mapping[str, Any]) -> bool:
        """Whether the prompt has metadata. Those of another world are refused later, by name."""
        return bool(prompt.nouns or prompt.attr_nouns or prompt.spatial_info or prompt.numeracy_info)

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """One Score a picture, uint8 [B, 64, 64, 3]; not applicable to a prompt without metadata.

        Raises RewardError for pictures of another size and for metadata of another world.
        """
        try:
            drawings = detect_objects(pictures)
            return [self._score_drawing(drawing, prompt) for drawing, prompt in zip(drawings, prompts, strict=True)]
        except (BicotError, ValueError) as error:
            raise RewardError(f"reward 'shapes': {error}") from error

    def _score_drawing(self, drawing: Drawing, prompt: Prompt) -> Score:
        expected = expected_objects(prompt)
        if not expected:
            return Score(None, {"why": "the prompt has no nouns, attr_nouns, spatial_info or numeracy_info"})
        matches = _match(expected, drawing.objects)
        values = [_match_value(item, match) if match else 0.0 for item, match in zip(expected, matches, strict=True)]
        objects = sum(values) / len(expected)
        num_drawn = _count_drawn(drawing)
        precision = len(expected) / max(len(expected), num_drawn)
        parts: dict[str, Any] = {
            "found": [str(item) for item in drawing.objects],
            "missing": [str(item) for item, match in zip(expected, matches, strict=True) if match is None],
            "wrong": [
                f"{item}: drawn as {match}"
                for item, match, value in zip(expected, matches, values, strict=True)
                if match is not None and value < 1
            ],
            "objects": objects,
            "precision": precision,
        }
        value = objects * precision
        relation = demanded_relation(prompt)
        if relation is not None:
            parts["relation"] = float(_relation_holds(relation, expected, matches))
            value *= (1 + parts["relation"]) / 2
        if prompt.numeracy_info:
            parts["count"] = max(0.0, 1 - abs(len(drawing.objects) - len(expected)) / len(expected))
            value *= (1 + parts["count"]) / 2
        return Score(value, parts)


def _match(expected: Sequence[ExpectedObject], found: Sequence[DetectedObject]) -> list[DetectedObject | None]:
    """For each expected object the found one that it is matched with, so that the sum of values is largest.

    None where there is none of any value.
    """
    values = np.array([[_match_value(item, candidate) for candidate in found] for item in expected])
    matches: list[DetectedObject | None] = [None] * len(expected)
    if found:
        rows, columns = linear_sum_assignment(values, maximize=True)
        for row, column in zip(rows, columns, strict=True):
            if values[row, column] > 0:
                matches[row] = found[column]
    return matches


def _match_value(expected: ExpectedObject, found: DetectedObject) -> float:
    """How well `found` is what was asked for, in [0, 1].

    Half for the shape, half for the demanded attributes, or all for the shape where none is
    demanded; times how well-formed and how vivid it is, and halved if it has no one color.
    """
    form = _ramp(found.iou, _ZERO_IOU, _FULL_IOU) * _ramp(found.vividness, _ZERO_VIVIDNESS, _FULL_VIVIDNESS)
    if found.color is None:
        form *= _MIXED_COLOR_FACTOR
    shape = float(found.shape == expected.shape)
    demanded = [(expected.color, found.color), (expected.texture, found.texture)]
    right = [float(wanted == given) for wanted, given in demanded if wanted is not None]
    return form * ((shape + sum(right) / len(right)) / 2 if right else shape)


def _ramp(value: float, zero: float, full: float) -> float:
    return min(1.0, max(0.0, (value - zero) / (full - zero)))


def _count_drawn(drawing: Drawing) -> float:
    """How many objects the drawing would make up: large blobs count for several, specks for a fraction."""
    pieces = sum(max(1.0, item.area / _MAX_OBJECT_AREA) for item in drawing.objects)
    return pieces + max(0, drawing.speck_area - _FREE_SPECK_AREA) / _SPECK_AREA_PER_OBJECT


def _relation_holds(
    relation: str, expected: Sequence[ExpectedObject], matches: Sequence[DetectedObject | None]
) -> bool:
    """Whether the first two objects are there, with the right shapes, and stand as asked."""
    first, second = matches[:2]
    if first is None or second is None or (first.shape, second.shape) != (expected[0].shape, expected[1].shape):
        return False
    down, right = second.row - first.row, second.column - first.column
    if relation == NEAR:
        return math.hypot(down, right) <= _MAX_NEAR
    return {"left of": right, "right of": -right, "above": down, "below": -down}[relation] >= _MIN_SHIFT
