"""T2I-CompBench's rules for where objects are: two nouns of the prompt, their boxes, and the relation between them.

    2D    0.25 * surety of each of the two + 0.5 * relation, and 0 where that is below 0.5
    3D    the same without that floor; "in front of", "behind" and "hidden" by the mean depth in the two boxes

Boxes are of the picture as the detector sees it, 479 pixels high: distances of 150 pixels count in it. (Huang et al.
2023, arXiv 2307.06350, section 4.2; and 2025, T2I-CompBench++.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final

from rewards.benchmarks.compbench.language import Word, spaceless

Found = Mapping[str, Any]
"""A detected object: label, score, box [x0, y0, x1, y1], and of 3D `depth` and `depth_corrected`."""
Box = Sequence[float]

NEAR: Final = ("on side of", "next to", "near")
RELATIONS: Final = (*NEAR, "on the left of", "on the right of", "on the bottom of", "on the top of", "on top of")
"""In the order in which they are looked for in a prompt; the last one has no rule, so that nothing can satisfy it."""
RELATIONS_3D: Final = ("in front of", "behind", "hidden")
PREPOSITIONS: Final = frozenset(
    {"on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near"}
)
"""Beside which the objects of a complex prompt stand."""
PERSONS: Final = frozenset({"girl", "boy", "man", "woman"})
NEAR_DISTANCE: Final = 150.0
MAX_IOU: Final = 0.1
OCCLUSION_IOU: Final = 0.5
SHARE_OF_OBJECT, SHARE_OF_RELATION = 0.25, 0.5
FLOOR: Final = 0.5
PAIR: Final = 2
_DIRECTIONS: Final[Mapping[str, tuple[int, int]]] = {
    "on the right of": (0, -1),
    "on the left of": (0, 1),
    "on the bottom of": (1, -1),
    "on the top of": (1, 1),
}
"""Axis and sign of the way from the first box to the second."""


def outer_nouns(words: Sequence[Word]) -> list[str]:
    """The first and the last noun of a prompt; none where it has none."""
    nouns = [spaceless(word) for word in words if word.kind == "NOUN"]
    return [nouns[0], nouns[-1]] if nouns else []


def nouns_beside_prepositions(words: Sequence[Word]) -> list[str]:
    """Of a complex prompt: the nearest noun or name before each preposition, and the next noun behind it.

    Where no noun is behind it, the last word of the first name there. Other than two of them together count as none.
    """
    found: list[str] = []
    for index in range(len(words)):
        length = next((n for n in (3, 2, 1) if _span(words, index, n) in PREPOSITIONS), 0)
        if not length:
            continue
        before = [word for word in words[:index] if word.kind in ("NOUN", "PROPN")]
        behind = words[index + length :]
        found += [spaceless(word) for word in before[-1:]]
        noun = next((number for number, word in enumerate(behind) if word.kind == "NOUN"), None)
        if noun is not None:
            found.append(spaceless(behind[noun]))
        else:
            pairs = itertools.pairwise(behind)
            found += [spaceless(one) for one, after in pairs if one.kind == "PROPN" and after.kind != "PROPN"][:1]
    return found if len(found) == PAIR else []


def _span(words: Sequence[Word], start: int, length: int) -> str:
    own = words[start : start + length]
    return "".join(word.text for word in own[:-1]) + spaceless(own[-1])


def score_2d(prompt: str, nouns: Sequence[str], objects: Sequence[Found]) -> float:
    """The official score of a picture; objects: the surest first. A noun's object is the first one with its name."""
    named = [next((one for one in objects if one["label"] == _name(noun)), None) for noun in nouns]
    found = [one for one in named if one is not None]
    score = _total(found, _phrase(prompt, RELATIONS), lambda phrase, a, b: relation_2d(phrase, a["box"], b["box"]))
    return score if score >= FLOOR else 0.0


def score_3d(prompt: str, nouns: Sequence[str], objects: Sequence[Found], depth: str) -> float:
    """The official score of a picture; depth: of which of an object's depths.

    A noun's object is one whose label holds it: the last of these up to where both nouns have one. (So it is in the
    official script, which goes on looking for the second one.)
    """
    holders = [[place for place, one in enumerate(objects) if _name(noun) in one["label"]] for noun in nouns]
    if holders and all(holders):
        end = max(places[0] for places in holders)
        found = [objects[max(place for place in places if place <= end)] for places in holders]
    else:
        found = [objects[places[0]] for places in holders if places]
    return _total(found, _phrase(prompt, RELATIONS_3D), lambda phrase, a, b: relation_3d(phrase, a, b, depth))


def relation_2d(phrase: str, first: Box, second: Box) -> float:
    """How well the first box stands in that relation to the second, 0 to 1."""
    way = [(second[axis] + second[axis + 2] - first[axis] - first[axis + 2]) / 2 for axis in (0, 1)]
    if phrase in NEAR:
        return 1.0 if min(map(abs, way)) < NEAR_DISTANCE else NEAR_DISTANCE / max(map(abs, way))
    if phrase not in _DIRECTIONS:
        return 0.0
    axis, sign = _DIRECTIONS[phrase]
    if way[axis] * sign <= abs(way[1 - axis]):
        return 0.0
    iou = overlap(first, second)
    return 1.0 if iou < MAX_IOU else MAX_IOU / iou


def relation_3d(phrase: str, first: Found, second: Found, depth: str) -> float:
    """How well the first object stands in that relation to the second: they overlap, and the right one is nearer."""
    nearer, other = (first, second) if phrase == RELATIONS_3D[0] else (second, first)
    iou = overlap(first["box"], second["box"])
    is_right = None not in (nearer[depth], other[depth]) and nearer[depth] > other[depth]
    if phrase not in RELATIONS_3D or not is_right or iou == OCCLUSION_IOU:
        return 0.0
    return min(1.0, iou / OCCLUSION_IOU)


def overlap(first: Box, second: Box) -> float:
    """Intersection over union."""
    sides = [min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis]) for axis in (0, 1)]
    shared = max(0, sides[0]) * max(0, sides[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(shared / (sum(areas) - shared))


def _total(found: Sequence[Found], phrase: str, relation: Callable[[str, Found, Found], float]) -> float:
    score = sum(SHARE_OF_OBJECT * one["score"] for one in found)
    return score + (SHARE_OF_RELATION * relation(phrase, *found) if len(found) == PAIR else 0.0)


def has_classes(nouns: Sequence[str], labels: Container[str]) -> bool:
    """Whether a detector with these labels could find the nouns at all."""
    return all(_name(noun) in labels for noun in nouns)


def _name(noun: str) -> str:
    return "person" if noun in PERSONS else noun


def _phrase(prompt: str, phrases: Sequence[str]) -> str:
    return next((phrase for phrase in phrases if phrase in prompt), "")
