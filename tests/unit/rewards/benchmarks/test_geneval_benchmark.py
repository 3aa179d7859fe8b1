"""GenEval from prompts to scores, with invented records, and a tiny detector and CLIP."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError, DataError
from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.geneval.records import TAGS, items_of
from rewards.benchmarks.geneval.rules import as_answer, geneval_measures, grade_objects
from rewards.benchmarks.protocol import Graded, ScorerOptions
from rewards.objects.geneval import FoundObject
from tests.official_data import official
from tests.pictures import tiled_pictures
from tests.unit.rewards.benchmarks.tiny_geneval import RECORDS, save_geneval_models
from tests.unit.rewards.benchmarks.worlds import write_all

GOLDEN = Path(__file__).parents[3] / "data" / "geneval" / "golden.json.gz"


def test_answers_that_went_through_a_file_are_graded_as_genevals_own_code_does() -> None:
    for image in json.loads(gzip.decompress(GOLDEN.read_bytes()))["images"]:
        found = {
            name: [
                (
                    FoundObject(tuple(map(float, row[:4])), row[4]),
                    image["colors"][f"{name}|{','.join(map(str, row[:4]))}"],
                )
                for row in rows
            ]
            for name, rows in image["detections"].items()
        }
        (item,) = items_of([image["metadata"]], "golden")
        answer = json.loads(json.dumps(as_answer(found)))
        assert grade_objects(item, answer)["correct"] == float(image["correct"]), image


def test_the_overall_score_is_the_mean_of_the_six_tags() -> None:
    items = items_of(RECORDS[:2] + RECORDS[:1], "records")
    right, wrong = {"correct": 1.0, "partial": 1.0}, {"correct": 0.0, "partial": 0.5}
    graded = [
        Graded(items[0], (right, right, right, right)),
        Graded(items[1], (right, wrong, None, wrong)),
        Graded(items[2], (wrong, wrong, wrong, wrong)),
    ]
    scores = {measure.name: measure.value() for measure in geneval_measures(graded)}
    assert scores["single_object"] == 0.5
    assert scores["two_object"] == 0.25
    assert scores["overall"] == 0.375
    assert scores["pictures_correct"] == pytest.approx(5 / 12)
    assert scores["prompts_with_any_correct"] == pytest.approx(2 / 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_geneval_models(tmp_path_factory.mktemp("models"))


def run(models: Path, folder: Path, output: str, *settings: str) -> tuple[int, dict[str, Any]]:
    data = folder / "evaluation_metadata.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    items = items_of(RECORDS, "records")
    pictures = tiled_pictures(24, height=48, width=48)
    write_all(items, folder / "images", lambda item, number: pictures[4 * items.index(item) + number])
    chosen = [f"detector={models / 'mask2former.pth'}", f"clip={models / 'clip-vit-large-patch14'}", "short_side=64"]
    options = [text for setting in (*chosen, *settings) for text in ("--scorer", setting)]
    fixed = ["--data", str(folder), "--images", str(folder / "images"), "--output-dir", str(folder / output)]
    code = main(["geneval", *fixed, *options])
    (path,) = (folder / output / "geneval" / "results").iterdir()
    return code, json.loads(path.read_text())


def answers(folder: Path, output: str) -> dict[str, Any]:
    (path,) = (folder / output / "geneval" / "answers").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["file"]: line["answer"] for line in lines}


def test_it_runs_end_to_end_and_a_batch_sees_what_single_pictures_show(models: Path, tmp_path: Path) -> None:
    code, result = run(models, tmp_path, "batched", "batch_size=5")
    assert code == 0
    assert set(result["measures"]) == {"overall", *TAGS, "pictures_correct", "prompts_with_any_correct"}
    assert result["metric"] == "geneval[detector=mask2former.pth, short_side=64]", "a substitute is named"
    assert set(result["scorer"]["detector"]) == {"mask2former.pth"}
    assert result["data"]["departures"] == ["evaluation_metadata.jsonl is not the official file"]
    run(models, tmp_path, "single", "batch_size=1")
    together, alone = answers(tmp_path, "batched"), answers(tmp_path, "single")
    assert len(together) == 24
    assert together.keys() == alone.keys()
    for file, answer in together.items():
        for name, rows in answer["objects"].items():
            for given, expected in zip(rows, alone[file]["objects"][name], strict=True):
                assert given[:5] == pytest.approx(expected[:5], abs=1e-4)
    named = [row[5] for answer in together.values() for rows in answer["objects"].values() for row in rows]
    assert len({color for color in named if color}) > 1, "colours are named where the prompt names one"


def test_without_a_detector_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--scorer detector=…: the official Mask2Former's \.pth file"):
        make_benchmark("geneval").variant(ScorerOptions())


def test_broken_data_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + "\n" + '{"tag": "single_object", "include": [{"class": "kite"}]}\n')
    with pytest.raises(DataError, match=r"evaluation_metadata\.jsonl:2"):
        make_benchmark("geneval").read_data(path)
    with pytest.raises(DataError, match="geneval needs --data"):
        make_benchmark("geneval").read_data(None)


def test_the_official_prompts_are_read_in_full() -> None:
    data = make_benchmark("geneval").read_data(official("geneval"))
    assert data.departures == ()
    counts = Counter(item.tag for item in data.items)
    assert [counts[tag] for tag in TAGS] == [80, 99, 80, 94, 100, 100]
    assert sum(item.num_pictures for item in data.items) == 2212
