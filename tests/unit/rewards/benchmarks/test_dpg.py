"""DPG-Bench: mPLUG against outputs of its authors' code, scores against the official function, defects, a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import ConfigError, DataError
from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.dpg.mplug import MPlug, load_mplug
from rewards.benchmarks.dpg.questions import Question, cell_score, read_questions
from rewards.benchmarks.encoding import as_grid
from rewards.benchmarks.protocol import Graded, Item, ScorerOptions
from tests.official_data import official
from tests.pictures import tiled_pictures
from tests.unit.rewards.benchmarks.tiny_mplug import HEADER, read_record, write_data, write_mplug
from tests.unit.rewards.benchmarks.worlds import write_all

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mplug(tmp_path_factory.mktemp("mplug"))


@pytest.fixture(scope="module")
def model(folder: Path) -> MPlug:
    return load_mplug(folder, "cpu")


def test_mplug_answers_as_its_authors_code_does(model: MPlug) -> None:
    cases = read_record()["cases"]
    lengths = {len(case["ids"]) for case in cases}
    assert len(lengths) > 3, "answers of one length only would not show how beams end"
    for seed in sorted({case["seed"] for case in cases}):
        own = [case for case in cases if case["seed"] == seed]
        shape = (1, 3, model.image_size, model.image_size)
        pixels = torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
        with torch.inference_mode():
            seen = model.see(pixels)
        assert np.abs(seen[0, :2, :4].numpy() - np.array(own[0]["seen"])).max() < TOLERANCE
        answers = model.answer(seen.expand(len(own), -1, -1), [case["question"] for case in own])
        assert answers == [case["answer"] for case in own]
        for case in own:
            encoded = model.tokenizer(case["question"].lower(), truncation=True, max_length=25, return_tensors="pt")
            with torch.inference_mode():
                asked = model.text_encoder(**encoded).last_hidden_state
                both = model.fusion(seen, asked, encoded.attention_mask)[0].numpy()
            assert np.abs(both[seen.shape[1] - 1, :6] - np.array(case["picture"])).max() < TOLERANCE
            assert np.abs(both[-1, :6] - np.array(case["text"])).max() < TOLERANCE


def test_a_question_alone_is_answered_as_among_others(model: MPlug) -> None:
    case = read_record()["cases"][5]
    shape = (1, 3, model.image_size, model.image_size)
    pixels = torch.from_numpy(np.random.RandomState(case["seed"]).standard_normal(shape).astype(np.float32))
    with torch.inference_mode():
        assert model.answer(model.see(pixels), [case["question"]]) == [case["answer"]]


def test_another_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lacks config\.yaml, config_bert\.json"):
        load_mplug(tmp_path, "cpu")
    for name in ("config.yaml", "config_bert.json", "vocab.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)["model"]
    del weights["visn_fc.bias"]
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"lacks 1 weights, the first is visn_fc\.bias"):
        load_mplug(tmp_path, "cpu")


def item_of(questions: tuple[Question, ...], num_lost: int = 0) -> Item:
    record = {"questions": questions, "num_lost": num_lost, "is_in_official": True}
    return Item("a", "a", "a", ("a.png",), record, cells=4)


def test_scores_are_those_of_the_official_function() -> None:
    for case in json.loads(official("golden", "dpg_bench.json").read_text())["items"]:
        parents = case["dependencies"]
        questions = tuple(Question(int(key), tuple(p for p in parents[key] if p), "entity", "") for key in parents)
        cells = [[cell[key] for key in parents] for cell in case["answers"]]
        values = make_benchmark("dpg").grade(item_of(questions), {"cells": cells})
        assert values["score"] == values["as_shipped"] == pytest.approx(case["score"], abs=1e-12)
        assert values["entity"] == sum(case["category_scores_of_last_picture"].values())


def test_a_wrong_parent_is_handed_on_in_the_order_of_rows() -> None:
    chain = (Question(1, (), "entity", ""), Question(2, (1,), "entity", ""), Question(3, (2,), "entity", ""))
    assert cell_score(chain, [False, True, True]) == 0.0
    assert cell_score(chain[::-1], [True, True, False]) == pytest.approx(1 / 3)  # 3 was looked at before 2 was zeroed


def test_it_runs_end_to_end(folder: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "ELLA" / "dpg_bench").parent
    items = make_benchmark("dpg").read_data(data).items
    cells = tiled_pictures(4, height=20, width=20)
    write_all(items, tmp_path / "images", lambda item, number: as_grid(list(cells)))
    (tmp_path / "images" / items[3].files[0]).unlink()
    fixed = ["--data", str(data), "--images", str(tmp_path / "images"), "--output-dir", str(tmp_path / "out")]
    assert main(["dpg", *fixed, "--limit", "8", "--scorer", f"mplug={folder}"]) == 1
    result = json.loads((tmp_path / "out" / "dpg" / "results" / "dpg.json").read_text())
    assert (result["num_prompts"], result["missing"]) == (8, ["park3.png"])
    assert list(result["measures"]) == [
        "overall",
        "overall_corrected",
        *("entity", "attribute", "relation"),
        *("entity_corrected", "attribute_corrected", "relation_corrected"),
    ]
    assert result["measures"]["overall"]["num_prompts"] == 7
    (path,) = (tmp_path / "out" / "dpg" / "answers").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(len(line["answer"]["cells"]), len(line["answer"]["cells"][0])) for line in lines} == {(4, 3)}


def test_defects_of_the_official_script_are_kept_and_corrected(tmp_path: Path) -> None:
    benchmark = make_benchmark("dpg")
    items = benchmark.read_data(write_data(tmp_path)).items
    assert [item.record["is_in_official"] for item in items] == [False] + [True] * 7
    no, yes = ["no"] * 3, ["yes"] * 3
    answers = [{"cells": [yes] * 4}, *([{"cells": [yes, yes, yes, no]}] * 7)]
    graded = [Graded(item, (benchmark.grade(item, one),)) for item, one in zip(items, answers, strict=True)]
    measures = {measure.name: measure.value() for measure in benchmark.measures(graded)}
    assert measures["overall"] == pytest.approx(75)
    assert measures["overall_corrected"] == pytest.approx((100 + 7 * 75) / 8)
    assert measures["entity"] == 0
    assert measures["entity_corrected"] == pytest.approx((100 + 7 * 75) / 8)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("item_id,tuple\na,b\n", "lacks the column proposition_id"),
        (f"{HEADER}a,,,1,x,,,entity (a),Is it?\n", r"dpg_bench\.csv:2: proposition_id and dependency"),
        (HEADER, "holds no questions"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "dpg_bench.csv").write_text(rows)
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / "dpg_bench.csv")


def test_what_is_not_given_is_asked_for(tmp_path: Path) -> None:
    benchmark = make_benchmark("dpg")
    with pytest.raises(ConfigError, match="needs --scorer mplug=…: the folder of ModelScope's"):
        benchmark.variant(ScorerOptions())
    with pytest.raises(DataError, match=r"lacks dpg_bench\.csv"):
        benchmark.read_data(tmp_path)
    (tmp_path / "dpg_bench.csv").write_text(f"{HEADER}a,,,1,0,,,entity (a),Is it?\n")
    with pytest.raises(DataError, match=r"prompts/a\.txt cannot be read"):
        benchmark.read_data(tmp_path)
