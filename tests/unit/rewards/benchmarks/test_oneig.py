"""OneIG-Bench: rules against the official functions, what a judge on this machine is asked, black cells, defects."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.errors import DataError
from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.encoding import as_grid, write_picture
from rewards.benchmarks.oneig.records import read_items
from rewards.benchmarks.oneig.rules import cell_score, clean_reply, clean_text, compare_text
from rewards.benchmarks.protocol import Graded, Item
from tests.judge_server import JudgeServer
from tests.official_data import official
from tests.pictures import tiled_pictures
from tests.unit.rewards.benchmarks.oneig_data import answer, question_of, write_repository


def golden(part: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(official("golden", "oneig.json").read_text())[part]
    return content


def test_texts_are_cleaned_and_compared_as_by_the_official_functions() -> None:
    for case in golden("text"):
        assert clean_text(case["text_content"]) == case["gt_clean"], case
        assert clean_reply(case["ocr"]) == case["ocr_clean"], case
        written = compare_text(case["text_content"], case["ocr"])
        assert written.parts == (case["edit_distance"], case["complete"], case["matched_words"], case["words"], 1), case


def test_alignment_is_that_of_the_official_function() -> None:
    for case in golden("alignment"):
        parents = {int(key): [one for one in own if one] for key, own in case["dependencies"].items()}
        cells = len(case["answers"]["1"])
        scores = [
            cell_score({int(key): replies[cell] for key, replies in case["answers"].items()}, parents)
            for cell in range(cells)
        ]
        assert sum(scores) / cells == pytest.approx(case["score"], abs=1e-12)


def test_a_wrong_grandparent_costs_its_child_alone() -> None:
    assert cell_score({1: "No", 2: "Yes", 3: "Yes"}, {2: [1], 3: [2]}) == pytest.approx(1 / 3)


def test_chinese_is_kept_without_blanks() -> None:
    assert clean_text("一 二 a-b") == "一二ab"


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.close()


def black_cells(item: Item) -> int:
    """One of the first portrait's cells, and all of the first object's, could not be drawn."""
    return {"human-000": 1, "object-000": 4}.get(item.key, 0)


def run(judge: JudgeServer, folder: Path) -> tuple[int, dict[str, Any]]:
    data = write_repository(folder / "repository")
    cells = tiled_pictures(4, height=20, width=20)

    def grid(item: Item) -> Any:
        num_black = black_cells(item)
        return as_grid([np.zeros_like(cell) if i < num_black else cell for i, cell in enumerate(cells)])

    for item in make_benchmark("oneig").read_data(data).items:
        path = (folder / "images" / item.files[0]).with_suffix(".png")  # WebP would make black cells grey
        write_picture(grid(item), path)
    fixed = ["--data", str(data), "--images", str(folder / "images"), "--judge-url", judge.url]
    code = main(["oneig", *fixed, "--limit", "8", "--scorer", "backoff_s=0.01", "--output-dir", str(folder / "out")])
    return code, json.loads((folder / "out" / "oneig" / "results" / "oneig.json").read_text())


def test_it_runs_end_to_end(judge: JudgeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge.answer = answer
    code, result = run(judge, tmp_path)
    assert code == 0
    assert "reasoning is not scored" in capsys.readouterr().out.replace("\n", " ")
    measures = {name: measure["value"] for name, measure in result["measures"].items()}
    assert measures["alignment"] == pytest.approx(0.5)
    assert result["measures"]["alignment"]["num_prompts"] == 5
    assert measures["alignment_corrected"] == pytest.approx((4 * 0.5 + 0.375 + 0) / 6)
    edits = len(" ".join(["word"] * 61)) / 2  # of one text nothing is wrong, of the other all but a few letters
    assert measures["text_edit_distance"] == pytest.approx(edits, abs=5)
    assert measures["text_complete"] == 0.5
    assert measures["text_word_accuracy"] == pytest.approx(2 / 63)
    assert measures["text"] == pytest.approx(1 - 0.5 * (1 - 2 / 63))

    num_cells = {"aligned": 6 * 4 - 5, "written": 8}
    bodies = [body for _, _, body in judge.requests]
    questions = [question_of(body) for body in bodies]
    assert questions.count("Read it.") == num_cells["written"]
    assert len(questions) == 2 * num_cells["aligned"] + num_cells["written"]
    body = bodies[0]
    assert (body["model"], body["temperature"]) == ("Qwen/Qwen2.5-VL-7B-Instruct", 0.0)
    assert sorted({body["max_tokens"] for body in bodies}) == [128, 256]
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
    assert (picture.format, picture.size) == ("JPEG", (20, 20))


def test_a_picture_that_is_missing_counts_as_nothing_right(tmp_path: Path) -> None:
    benchmark = make_benchmark("oneig")
    items = benchmark.read_data(write_repository(tmp_path)).items
    measures = {measure.name: measure for measure in benchmark.measures([Graded(item, (None,)) for item in items])}
    assert measures["alignment"].value() == measures["alignment_corrected"].value() == 0
    assert measures["text"].value() == measures["text_corrected"].value() < 0.5
    assert measures["text_complete"].value() == measures["text_word_accuracy"].value() == 0


def test_wrong_files_are_told(tmp_path: Path) -> None:
    data = write_repository(tmp_path)
    benchmark = make_benchmark("oneig")
    files = {name: data / name for name in benchmark.files}  # type: ignore[attr-defined]
    files["scripts/alignment/Q_D/human.json"].write_text('{"000": {"question": "[]", "dependency": "{}"}}')
    with pytest.raises(DataError, match="the questions of human 000 cannot be read: no map of numbers"):
        read_items(files)
    files["scripts/alignment/Q_D/human.json"].write_text("{}")
    with pytest.raises(DataError, match=r"human\.json lacks prompt 000"):
        read_items(files)
    files["OneIG-Bench.csv"].write_text("category,id\nPortrait,000\n")
    with pytest.raises(DataError, match="every row needs category, id, prompt_en"):
        read_items(files)


def test_the_official_files_are_read_in_full() -> None:
    data = make_benchmark("oneig").read_data(official("oneig_bench"))
    assert [sum(item.tag == tag for item in data.items) for tag in ("anime", "human", "object", "text")] == [
        *(245, 244, 206, 200)
    ]
    assert sum(len(item.record.get("questions", ())) for item in data.items) == 11231
    assert len(data.departures) == 1
