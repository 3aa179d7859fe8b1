"""What the cheapest pictures earn of the detector's rules: what they hold by accident, and no more.

The pictures are given as what a detector that sees well would find in them. That random pixels, blobs and filled
pictures earn nothing of the shapes reward is in tests/unit/rewards/shapes, and walls of text of `ocr` in
tests/unit/rewards/text.
"""

from __future__ import annotations

import numpy as np
import pytest

from rewards.objects import Candidates
from rewards.objects.detections import DetectionRules
from rollout.records import CountInfo, Prompt, SpatialInfo

DIRECTIONS = ("left of", "right of", "above", "below", "on top of", "on side of")
RULES = DetectionRules(max_iou=0.5)
WHOLE = [0.5, 0.5, 0.96, 0.96]
GRID = [[(column + 0.5) / 3, (row + 0.5) / 3, 0.3, 0.3] for row in range(3) for column in range(3)]


def earned(prompt: Prompt, **boxes: list[list[float]]) -> float:
    found = {
        noun: Candidates(np.array(rows, dtype=np.float32).reshape(-1, 4), np.linspace(0.9, 0.5, len(rows)))
        for noun, rows in boxes.items()
    }
    return RULES.score(prompt, found, 384, 384).value


def relation(locality: str) -> Prompt:
    return Prompt("p", "t", "spatial", nouns=("cat", "dog"), spatial_info=SpatialInfo("cat", "dog", locality))


def count(num: int) -> Prompt:
    return Prompt("p", "t", "numeracy", nouns=("cat",), numeracy_info=(CountInfo("cat", num),))


@pytest.mark.parametrize("prompt", [relation("left of"), relation("near"), count(2), Prompt("p", "t", nouns=("cat",))])
def test_nothing_that_can_be_recognised_earns_nothing(prompt: Prompt) -> None:
    assert earned(prompt, cat=[], dog=[]) == 0.0


@pytest.mark.parametrize("locality", DIRECTIONS)
def test_one_object_in_the_middle_of_the_other_earns_only_that_both_are_there(locality: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = 0.5 + rng.uniform(-0.08, 0.08, 2)
        assert earned(relation(locality), cat=[[x, y, 0.2, 0.2]], dog=[WHOLE]) == pytest.approx(0.4)
        assert earned(relation(locality), cat=[WHOLE], dog=[[x, y, 0.2, 0.2]]) == pytest.approx(0.4)


@pytest.mark.parametrize("locality", [*DIRECTIONS, "near", "next to"])
def test_one_object_that_passes_for_both_earns_only_that_both_are_there(locality: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        box = np.array([0.5, 0.5, 0.4, 0.3])
        other = box + rng.uniform(-0.01, 0.01, 4)
        assert earned(relation(locality), cat=[box.tolist()], dog=[other.tolist()]) < 0.5


def test_objects_everywhere_are_no_count() -> None:
    for num in (1, 2, 3, 4):
        assert earned(count(num), cat=GRID) == 0.0


def test_objects_everywhere_stand_in_one_direction_at_most() -> None:
    rng = np.random.default_rng(2)
    holding = []
    for _ in range(50):
        cats, dogs = (rng.permutation(GRID).tolist() for _ in range(2))
        values = [earned(relation(where), cat=cats, dog=dogs) for where in ("left of", "right of", "above", "below")]
        holding.append(sum(value > 0.99 for value in values))
    assert max(holding) <= 2  # exactly on the diagonal, both directions hold
    assert np.mean(holding) < 1.3
