"""GenEval over the shapes world, with its exact detector: a benchmark whose truth is known, and needs no data.

Its prompts are held-out ones of the shapes world, in GenEval's six categories; its objects are shapes. What
`rollout.shapes` renders for a prompt scores 1.0, so that what a policy scores less is the policy's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import RewardError
from rewards.benchmarks.geneval.records import TAGS, items_of
from rewards.benchmarks.geneval.rules import as_answer, geneval_measures, grade_objects
from rewards.benchmarks.pictures import open_picture
from rewards.benchmarks.protocol import Answer, Asked, Data, Graded, Item, ScorerOptions, Values
from rewards.benchmarks.statistics import Measure
from rewards.objects.geneval import COLORS, FoundObject
from rewards.shapes.detector import Drawing, detect_objects
from rollout.records import Prompt
from rollout.shapes.world import IMAGE_SIZE, SPRITE_SIZE, demanded_relation, expected_objects, load_split

NUM_PER_TAG = 16
_NUM_SEARCHED = 4096
"""Held-out prompts among which those of each tag are found."""
_SURE = 1.0


class ShapesBenchmark:
    """`shapes`: see the top of this file."""

    name = "shapes"
    title = "GenEval over the shapes world"
    repository = ""
    needs = "nothing"
    picture_score = "correct"
    settings: Mapping[str, str] = {}

    def read_data(self, path: Path | None) -> Data:
        """The prompts, made by rule; `path` is not read."""
        return Data(items_of(shapes_records(), "shapes"), {})

    def variant(self, options: ScorerOptions) -> Mapping[str, str]:
        """There is one scorer."""
        return {}

    def open_scorer(self, options: ScorerOptions) -> ShapesScorer:
        """The exact detector."""
        return ShapesScorer()

    def grade(self, item: Item, answer: Answer) -> Values:
        """See `grade_objects`."""
        return grade_objects(item, answer)

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """See `geneval_measures`."""
        return geneval_measures(graded)


class ShapesScorer:
    """The exact detector of the shapes world."""

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """Shapes with their boxes and colours."""
        for one in asked:
            picture = open_picture(one)
            if isinstance(picture, RewardError):
                yield one, picture
                continue
            try:
                yield one, as_answer(_objects_of(detect_objects(picture[None])[0]))
            except ValueError as error:
                yield one, RewardError(f"{one.path.name}: {error}")

    def about(self) -> Mapping[str, Any]:
        """Its name."""
        return {"detector": f"the exact detector of the shapes world, {IMAGE_SIZE} pixels"}

    def close(self) -> None:
        """It holds nothing."""


def _objects_of(drawing: Drawing) -> dict[str, list[tuple[FoundObject, str | None]]]:
    found: dict[str, list[tuple[FoundObject, str | None]]] = {}
    for item in drawing.objects:
        if item.shape is None:
            continue
        half = SPRITE_SIZE / 2
        box = (item.column - half, item.row - half, item.column + half, item.row + half)
        rounded = tuple(np.round(box, 3).tolist())
        found.setdefault(item.shape, []).append((FoundObject(rounded, _SURE), item.color))
    return found


def shapes_records() -> list[dict[str, Any]]:
    """NUM_PER_TAG records of each tag, in the order of the tags."""
    by_tag: dict[str, list[dict[str, Any]]] = {tag: [] for tag in TAGS}
    for prompt in load_split("heldout", _NUM_SEARCHED):
        record = _record_of(prompt)
        if record is not None and len(by_tag[record["tag"]]) < NUM_PER_TAG:
            by_tag[record["tag"]].append(record)
    return [record for records in by_tag.values() for record in records]


def _record_of(prompt: Prompt) -> dict[str, Any] | None:
    """A held-out prompt as a record; None for what GenEval's rules cannot say."""
    objects = expected_objects(prompt)
    include: list[dict[str, Any]] = [
        {"class": item.shape, "count": 1} | ({"color": item.color} if item.color else {}) for item in objects
    ]
    if any(entry.get("color", COLORS[0]) not in COLORS for entry in include):
        return None
    record: dict[str, Any] = {"tag": None, "include": include, "prompt": prompt.text}
    num = len(objects)
    if prompt.task_type == "numeracy":
        include[0]["count"] = num
        del include[1:]
        exclude = [{"class": include[0]["class"], "count": num + 1}]
        return record | {"tag": "counting", "exclude": exclude}
    if len({item.shape for item in objects}) < num or num > 2:
        return None  # its rules take the surest object of a class for each entry
    if prompt.task_type == "spatial":
        placed, reference = include
        relation = [demanded_relation(prompt), 0]
        return record | {"tag": "position", "include": [reference, placed | {"position": relation}]}
    tags = {"object": ("single_object", "two_object"), "color": ("colors", "color_attr")}.get(prompt.task_type)
    return record | {"tag": tags[num - 1]} if tags else None
