"""rewards/objects/geneval.py, against what GenEval's own code said of the same detections (tests/data/geneval)."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rewards.objects.geneval import FoundObject, Record, Verdict, judge, read_record, relations_of

GOLDEN = Path(__file__).parents[3] / "data" / "geneval" / "golden.json.gz"
LEFT, MIDDLE, RIGHT = (10, 40, 30, 60), (40, 40, 60, 60), (70, 40, 90, 60)


@cache
def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(gzip.decompress(GOLDEN.read_bytes()))
    return content


def verdict_of(image: dict[str, Any]) -> Verdict:
    found = {name: [FoundObject(tuple(row[:4]), row[4]) for row in rows] for name, rows in image["detections"].items()}

    def color_of(name: str, objects: Sequence[FoundObject]) -> list[str]:
        return [image["colors"][f"{name}|{','.join(map(str, item.box))}"] for item in objects]

    record = read_record(image["metadata"])
    assert record is not None
    return judge(record, found, color_of)


def test_relations_are_those_of_genevals_own_code() -> None:
    for pair in golden()["positions"]:
        assert sorted(relations_of(pair["a"], pair["b"])) == sorted(pair["relations"]), pair
    assert len(golden()["positions"]) == 120


def test_strict_verdicts_are_those_of_genevals_own_code() -> None:
    wrong = [image for image in golden()["images"] if verdict_of(image).correct != image["correct"]]
    assert wrong == []
    assert sum(image["correct"] for image in golden()["images"]) == 59


def test_the_partial_score_is_one_where_the_picture_is_correct_and_less_where_it_is_not() -> None:
    for image in golden()["images"]:
        verdict = verdict_of(image)
        assert 0 <= verdict.partial <= 1
        assert (verdict.partial == 1) == image["correct"], image
        assert bool(verdict.reasons) != image["correct"]


def found(**boxes: Sequence[tuple[float, float, float, float]]) -> dict[str, list[FoundObject]]:
    return {name: [FoundObject(box, 0.95) for box in rows] for name, rows in boxes.items()}


def record(tag: str, *include: dict[str, Any], exclude: Sequence[dict[str, Any]] = ()) -> Record:
    read = read_record({"tag": tag, "include": list(include), "exclude": list(exclude)})
    assert read is not None
    return read


def color_is(color: str) -> Any:
    return lambda name, objects: [color] * len(objects)


@pytest.mark.parametrize(("num_found", "partial"), [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (4, 2 / 3), (6, 0), (9, 0)])
def test_a_count_is_graded_by_its_distance_in_both_directions(num_found: int, partial: float) -> None:
    three = record("counting", {"class": "cat", "count": 3}, exclude=[{"class": "cat", "count": 4}])
    verdict = judge(three, found(cat=[LEFT] * num_found), color_is("red"))
    assert verdict.partial == pytest.approx(partial)
    assert verdict.correct == (num_found == 3)


def test_counting_asks_for_surer_objects() -> None:
    unsure = {"cat": [FoundObject(LEFT, 0.8)]}
    assert judge(record("single_object", {"class": "cat", "count": 1}), unsure, color_is("red")).correct
    counted = record("counting", {"class": "cat", "count": 1}, exclude=[{"class": "cat", "count": 2}])
    assert not judge(counted, unsure, color_is("red")).correct


def test_a_wrong_colour_costs_its_object_and_a_wrong_place_its_pair() -> None:
    both = record("color_attr", {"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1})
    verdict = judge(both, found(cat=[LEFT], dog=[RIGHT]), color_is("blue"))
    assert (verdict.correct, verdict.partial) == (False, 0.5)
    assert verdict.reasons == ("0 of 1 cat red",)
    placed = record("position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]})
    assert judge(placed, found(cat=[LEFT], dog=[RIGHT]), color_is("red")).correct
    assert judge(placed, found(cat=[RIGHT], dog=[LEFT]), color_is("red")).partial == 0.5
    assert judge(placed, found(cat=[LEFT]), color_is("red")).partial == 0.0


def test_the_cheapest_pictures_earn_little() -> None:
    placed = record("position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]})
    on_it = found(cat=[(38, 40, 58, 60)], dog=[(0, 0, 100, 100)])
    assert judge(placed, on_it, color_is("red")).partial == 0.5
    assert judge(placed, found(cat=[MIDDLE], dog=[MIDDLE]), color_is("red")).partial == 0.5
    counted = record("counting", {"class": "cat", "count": 2}, exclude=[{"class": "cat", "count": 3}])
    everywhere = found(cat=[(x, y, x + 30, y + 30) for x in (0, 33, 66) for y in (0, 33, 66)])
    assert judge(counted, everywhere, color_is("red")).partial == 0.0
    assert judge(placed, {}, color_is("red")).partial == 0.0


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_one_object_on_the_other_stands_in_no_direction(relation: str) -> None:
    placed = record("position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": [relation, 0]})
    rng = random.Random(0)
    for _ in range(50):
        x, y = 50 + rng.uniform(-8, 8), 50 + rng.uniform(-8, 8)
        verdict = judge(placed, found(cat=[(x - 10, y - 10, x + 10, y + 10)], dog=[(2, 2, 98, 98)]), color_is("red"))
        assert (verdict.correct, verdict.partial) == (False, 0.5)


def test_objects_everywhere_are_no_place_no_count_and_no_colour() -> None:
    grid = [(x, y, x + 30, y + 30) for x in (0, 33, 66) for y in (0, 33, 66)]
    placed = record("position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["above", 0]})
    rng, correct = random.Random(1), 0
    for _ in range(50):
        correct += judge(placed, found(cat=rng.sample(grid, 9), dog=rng.sample(grid, 9)), color_is("red")).correct
    assert correct < 50 * 0.6  # the surest of each is looked at, and where that stands is chance
    colored = record("colors", {"class": "cat", "count": 1, "color": "red"})
    mixed = judge(colored, found(cat=grid), lambda name, objects: ["blue"] * len(objects))
    assert (mixed.correct, mixed.partial) == (False, 0.0)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"include": [{"class": "cat"}]}, r"include\[0\]: an object with class and count"),
        ({"include": ["cat"]}, r"include\[0\]: an object with class and count"),
        ({"include": [{"class": "cat", "count": 0}]}, "count a whole number above 0"),
        ({"include": [{"class": "cat", "count": 1, "color": "mauve"}]}, r"include\[0\]\.color is 'mauve'"),
        ({"include": [{"class": "cat", "count": 1, "position": ["behind", 0]}]}, r"position is \['behind', 0\]"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, "refers to entry 0"),
        ({"include": [{"class": "cat", "count": 1}], "exclude": [3]}, r"exclude\[0\]"),
    ],
)
def test_a_malformed_record_is_refused_by_its_field(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_record(metadata)


def test_a_prompt_without_a_record_has_none() -> None:
    assert read_record({}) is None
    assert read_record({"tag": "two_object"}) is None
