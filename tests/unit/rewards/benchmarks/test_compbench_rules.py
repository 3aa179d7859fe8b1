"""T2I-CompBench's rules for objects: what the official scripts make of the same detections, and their own functions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import DataError
from rewards.benchmarks.compbench.language import Word
from rewards.benchmarks.compbench.numeracy import Nouns, merged, numeracy_score
from rewards.benchmarks.compbench.objects import depths_within
from rewards.benchmarks.compbench.spatial import (
    has_classes,
    nouns_beside_prepositions,
    outer_nouns,
    relation_2d,
    relation_3d,
    score_2d,
    score_3d,
)
from tests.official_data import official

RECORD = Path(__file__).resolve().parents[3] / "data" / "compbench" / "rules.json.gz"


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(gzip.decompress(RECORD.read_bytes()))
    return loaded


def words_of(case: dict[str, Any]) -> list[Word]:
    return [Word(text, kind) for text, kind in case["words"]]


def test_spatial_scores_are_those_of_the_official_script(record: dict[str, Any]) -> None:
    for case in record["spatial"]:
        score = score_2d(case["prompt"], outer_nouns(words_of(case)), case["objects"])
        assert score == pytest.approx(case["score"], abs=1e-6), case["prompt"]


def test_spatial_scores_of_complex_prompts_are_those_of_the_official_script(record: dict[str, Any]) -> None:
    for case in record["complex"]:
        score = score_2d(case["prompt"], nouns_beside_prepositions(words_of(case)), case["objects"])
        assert score == pytest.approx(case["score"], abs=1e-6), case["prompt"]


def test_3d_scores_are_those_of_the_official_script(record: dict[str, Any]) -> None:
    places = torch.arange(32)
    for case in record["3d_spatial"]:
        k, rows, columns = case["k"], places[:, None], places
        depth = ((rows * 37 * k + columns**2 * 11 + rows * columns * k) % 256).float() / 255
        objects = [one | depths_within(depth, one["box"]) for one in case["objects"]]
        score = score_3d(case["prompt"], outer_nouns(words_of(case)), objects, "depth")
        assert score == pytest.approx(case["score"], abs=1e-6), case["prompt"]


def test_numeracy_scores_are_those_of_the_official_script(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "nouns.txt").write_text(record["nouns"])
    nouns = Nouns(tmp_path / "nouns.txt")
    for case in record["numeracy"]:
        score = numeracy_score(nouns.wanted(words_of(case)), case["objects"])
        assert score == pytest.approx(case["score"], abs=1e-9), case["prompt"]


def test_relations_are_the_official_functions(tmp_path: Path) -> None:
    golden = json.loads(official("golden", "t2i_compbench.json").read_text())
    for case in golden["spatial_2d"]:
        assert relation_2d(case["relation"], case["box1"], case["box2"]) == pytest.approx(case["score"]), case
    for case in golden["spatial_3d"]:
        depth = torch.tensor(case["depth_255"]).float() / 255
        first, second = ({"box": case[name], **depths_within(depth, case[name])} for name in ("box1", "box2"))
        assert relation_3d(case["relation"], first, second, "depth") == pytest.approx(case["score"]), case


def test_the_depth_of_a_box_is_read_both_ways_round() -> None:
    depth = torch.zeros(4, 6)
    depth[0, 5] = 1.0
    assert depths_within(depth, [5.0, 0.0, 6.0, 1.0]) == {"depth": None, "depth_corrected": 1.0}
    assert depths_within(depth, [0.0, 5.0, 1.0, 6.0]) == {"depth": 1.0, "depth_corrected": None}


def test_a_prompt_without_nouns_scores_nothing() -> None:
    there = [{"label": "bench", "score": 0.9, "box": [0, 0, 9, 9], "depth": 0.5}]
    assert outer_nouns([Word("quietly ", "ADV")]) == []
    assert score_2d("quietly next to", [], there) == 0.0
    assert score_3d("quietly behind", [], there, "depth") == 0.0
    assert numeracy_score([], there) == 0.0


def test_a_noun_that_is_no_label_is_out_of_reach() -> None:
    assert has_classes(["boy", "bench"], {"person", "bench"})
    assert not has_classes(["wallet", "bench"], {"person", "bench"})


def test_one_object_that_was_found_twice_counts_once() -> None:
    box, inside, apart = [0, 0, 100, 100], [5, 5, 60, 60], [90, 90, 200, 200]
    objects = [{"label": "cup", "box": one} for one in (box, inside, apart)]
    assert merged(objects) == ["cup", "cup"]


def test_a_list_of_nouns_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("bench - benches\nkite\n")
    with pytest.raises(DataError, match=r"x\.txt:2: 'singular - plural' is expected, not 'kite'"):
        Nouns(tmp_path / "x.txt")
