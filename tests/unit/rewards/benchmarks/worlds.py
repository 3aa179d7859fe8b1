"""Pictures of the shapes world that a GenEval record asks for, and pictures that are wrong."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.benchmarks.encoding import write_picture
from rewards.benchmarks.protocol import Item
from rollout.records import UInt8Array
from rollout.shapes.world import COLORS, SHAPES, PlannedObject, render

CELLS_OF_RELATION = {"left of": (0, 1), "right of": (1, 0), "above": (0, 2), "below": (2, 0)}


def right_picture(record: Mapping[str, Any], seed: int = 0) -> UInt8Array:
    """What the record asks for, and nothing else."""
    objects = [(entry.get("color", "blue"), entry["class"]) for entry in record["include"]]
    cells: Sequence[int] = range(4)
    if record["tag"] == "counting":
        objects *= record["include"][0]["count"]
    if record["tag"] == "position":
        placed, reference = CELLS_OF_RELATION[record["include"][1]["position"][0]]
        cells = (reference, placed)
    plan = tuple(PlannedObject("solid", *item, cell) for item, cell in zip(objects, cells, strict=False))
    return render(plan, StillRandom(seed) if record["tag"] == "position" else random.Random(seed))


class StillRandom(random.Random):
    """Shifts no object, so that a relation is as clear as cells are."""

    def randint(self, a: int, b: int) -> int:
        return a


def wrong_picture(record: Mapping[str, Any]) -> UInt8Array:
    """One shape that the record does not ask for, in a colour that it does not ask for."""
    shapes = {entry["class"] for entry in record["include"]}
    colors = {entry.get("color") for entry in record["include"]}
    shape = next(shape for shape in SHAPES if shape not in shapes)
    color = next(color for color in COLORS if color not in colors)
    return render((PlannedObject("striped", color, shape, 3),), random.Random(0))


def write_all(items: Sequence[Item], folder: Path, picture_of: Any) -> None:
    for item in items:
        for number, name in enumerate(item.files):
            write_picture(picture_of(item, number), folder / name)
