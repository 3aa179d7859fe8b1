"""GenEval's rules: does a picture hold the objects, counts, colours and positions that its record asks for?

(Ghosh et al. 2023, arXiv 2310.11513.) One implementation, of the reward `geneval` and of the benchmark; what finds the
objects and names their colours is rewards/objects/geneval_detector.py.

    record   {"tag": "position", "include": [{"class": "dog", "count": 1},
                                             {"class": "cat", "count": 1, "position": ["left of", 0]}]}

    include     the surest `count` objects of the class have to be there; all of them of the `color`, if it names one;
                and each in the relation `position` names to each of the objects of the entry with that index
    exclude     fewer objects of the class than `count`

strict is GenEval's own: 1 if all of it holds, else 0. partial is graded, for training, the mean over the entries of
`include` of  count x colour x position  with

    count       1 - |found - wanted| / wanted, at least 0, where the record counts (its `exclude` names the class);
                else min(1, found / wanted)
    colour      share of the wanted objects that have the colour
    position    share of the pairs that stand as asked
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_SCORE, MIN_SCORE_COUNTING = 0.3, 0.9
"""An object that is found with less does not count; counting asks for more."""
MAX_OBJECTS = 16
"""Of a class."""
LEAST_STEP = 0.1
"""Of the sizes of two boxes together: centres that are closer in a direction do not differ in it."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
COUNTING = "counting"


@dataclass(frozen=True, slots=True, eq=False)
class FoundObject:
    """One object that a detector found."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels, y pointing down."""
    score: float
    mask: NDArray[np.bool_] | None = None
    """bool [height, width], where the detector gives one."""


Found = Mapping[str, Sequence[FoundObject]]
"""Class -> its objects, in any order."""
ColorOf = Callable[[str, Sequence[FoundObject]], Sequence[str]]
"""Class and some of its objects -> the colour of each."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One entry of `include`."""

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What a picture has to hold."""

    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()
    counts: bool = False

    @property
    def min_score(self) -> float:
        return MIN_SCORE_COUNTING if self.counts else MIN_SCORE


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say of one picture."""

    correct: bool
    partial: float
    reasons: tuple[str, ...]
    """What is wrong, for people."""


def read_record(metadata: Mapping[str, Any]) -> Record | None:
    """The record in a prompt's metadata; None if it has no `include`. Raises ValueError for a malformed one."""
    if not metadata.get("include"):
        return None
    include = tuple(_read_entry(entry, f"include[{i}]") for i, entry in enumerate(metadata["include"]))
    exclude = tuple(_read_entry(entry, f"exclude[{i}]") for i, entry in enumerate(metadata.get("exclude") or ()))
    for i, entry in enumerate(include):
        if entry.position and not 0 <= entry.position[1] < i:
            raise ValueError(f"include[{i}].position refers to entry {entry.position[1]}, which is not before it")
    return Record(include, exclude, counts=metadata.get("tag") == COUNTING)


def _read_entry(entry: Any, where: str) -> Wanted:
    try:
        name, count, color, position = entry["class"], entry["count"], entry.get("color"), entry.get("position")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where}: an object with class and count is expected, not {entry!r}") from error
    if not isinstance(name, str) or isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{where}: class must be a text and count a whole number above 0, not {entry!r}")
    if color is not None and color not in COLORS:
        raise ValueError(f"{where}.color is {color!r}; it has to be one of {', '.join(COLORS)}")
    if position is None:
        return Wanted(name, count, color)
    if not isinstance(position, Sequence) or len(position) != 2 or position[0] not in RELATIONS:
        raise ValueError(f"{where}.position is {position!r}; give a relation ({', '.join(RELATIONS)}) and an index")
    return Wanted(name, count, color, (position[0], int(position[1])))


def judge(record: Record, found: Found, color_of: ColorOf) -> Verdict:
    """The verdict on a picture in which these objects were found, the weak ones too."""
    kept = {name: kept_objects(objects, record.min_score) for name, objects in found.items()}
    groups: list[Sequence[FoundObject] | None] = []
    reasons, values = [], []
    for wanted in record.include:
        here = kept.get(wanted.name, [])
        chosen = here[: wanted.count]
        wrong = []
        if len(chosen) < wanted.count:
            wrong.append(f"{len(chosen)} of {wanted.count} {wanted.name}")
        value = _count_share(record, wanted, len(here))
        if wanted.color is not None and chosen:
            right = list(color_of(wanted.name, chosen)).count(wanted.color)
            value *= right / len(chosen)
            if right < len(chosen):
                wrong.append(f"{right} of {len(chosen)} {wanted.name} {wanted.color}")
        if wanted.position is not None and chosen:
            relation, index = wanted.position
            share = _pair_share(relation, chosen, groups[index] or kept.get(record.include[index].name, [])[:1])
            value *= share
            if not wrong and (groups[index] is None or share < 1):
                wrong.append(f"{wanted.name} is not {relation} {record.include[index].name}")
        groups.append(None if wrong else chosen)
        reasons += wrong
        values.append(value)
    for unwanted in record.exclude:
        num_found = len(kept.get(unwanted.name, []))
        if num_found >= unwanted.count:
            reasons.append(f"{num_found} {unwanted.name}, fewer than {unwanted.count} are wanted")
    return Verdict(not reasons, sum(values) / len(values), tuple(reasons))


def kept_objects(objects: Sequence[FoundObject], min_score: float) -> list[FoundObject]:
    """Those of a class that count, surest first, at most MAX_OBJECTS."""
    return sorted((item for item in objects if item.score > min_score), key=lambda item: -item.score)[:MAX_OBJECTS]


def _count_share(record: Record, wanted: Wanted, num_found: int) -> float:
    if any(unwanted.name == wanted.name for unwanted in record.exclude):
        return max(0.0, 1 - abs(num_found - wanted.count) / wanted.count)
    return min(1.0, num_found / wanted.count)


def _pair_share(relation: str, placed: Sequence[FoundObject], others: Sequence[FoundObject]) -> float:
    pairs = [relation in relations_of(item.box, other.box) for item in placed for other in others]
    return sum(pairs) / len(pairs) if pairs else 0.0


def relations_of(first: Sequence[float], second: Sequence[float]) -> set[str]:
    """In which of RELATIONS box `first` stands to box `second`: none, one, or two at a time.

    By the step from the second centre to the first, less LEAST_STEP of both sizes in each direction, relative to the
    whole step: a direction holds beyond a half.
    """
    step = [(first[axis] + first[axis + 2] - second[axis] - second[axis + 2]) / 2 for axis in (0, 1)]
    sizes = [first[axis + 2] - first[axis] + second[axis + 2] - second[axis] for axis in (0, 1)]
    beyond = [
        math.copysign(max(abs(length) - LEAST_STEP * size, 0.0), length)
        for length, size in zip(step, sizes, strict=True)
    ]
    if all(abs(length) < 1e-3 for length in beyond):
        return set()
    right, down = (length / math.hypot(*step) for length in beyond)
    holds = {"left of": right < -0.5, "right of": right > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {relation for relation, is_so in holds.items() if is_so}
