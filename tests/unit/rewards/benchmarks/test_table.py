"""Tables of results: intervals, published rows with their source, and pictures worst first."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rewards.benchmark import main
from rewards.benchmarks import BENCHMARKS, make_benchmark
from rewards.benchmarks.reporting.table import published_rows
from tests.unit.rewards.benchmarks.worlds import right_picture, write_all, wrong_picture


def test_every_published_row_has_a_source_and_names_measures_of_its_benchmark() -> None:
    for row in published_rows():
        assert row["source"], row
        assert isinstance(row["third_party"], bool), row
        assert row["measures"], row
    unknown = {row["benchmark"] for row in published_rows()} - set(BENCHMARKS)
    assert unknown == set()


def test_means_of_published_tags_are_the_published_overall_scores() -> None:
    for row in published_rows():
        tags = {name: value for name, value in row["measures"].items() if name != "overall"}
        if len(tags) == {"geneval": 6, "geneval_pp": 7}.get(row["benchmark"]):
            # The tags are rounded, too: to 0.005 each, so their mean as much.
            assert sum(tags.values()) / len(tags) == pytest.approx(row["measures"]["overall"], abs=0.0105), row
        if row["benchmark"] == "imagine":
            weights = {"attribute_shift": 3, "spatiotemporal": 2, "hybridization": 2, "multi_object": 2}
            mean = sum(weights[name] * value for name, value in tags.items()) / 9
            assert mean == pytest.approx(row["measures"]["overall"], abs=0.006), row


def test_a_table_shows_intervals_what_is_missing_and_the_worst_pictures_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = make_benchmark("shapes").read_data(None).items

    def half_right(item, number):
        return right_picture(item.record, number) if number < 2 + items.index(item) % 3 else wrong_picture(item.record)

    write_all(items[:8], tmp_path / "images", half_right)
    assert main(["shapes", "--images", str(tmp_path / "images"), "--output-dir", str(tmp_path / "out")]) == 1
    result = tmp_path / "out" / "shapes" / "results" / "shapes.json"
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert main(["table", str(result), str(result), "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("## GenEval over the shapes world\n\n| model | overall | single_object |")
    assert re.search(r"\*\*images\*\* \[1\] \| 0\.\d{3} \(0\.\d{3}–0\.\d{3}\)", shown)
    assert "INCOMPLETE: 328 of 360 files count as the lowest score" in shown
    text = page.read_text()
    scores = [float(score) for score in re.findall(r"<b>(\d\.\d\d)</b>", text)]
    assert scores[:48] == sorted(scores[:48])
    sources = re.findall(r'src="([^"]+)"', text)
    assert all((tmp_path / source).is_file() for source in sources)
    assert "http" not in text


def test_published_rows_stand_below_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {
        "schema": 1,
        "benchmark": "wise",
        "title": "WISE (legacy)",
        "metric": "wise[judge=other]",
        "is_complete": True,
        "num_prompts": 8,
        "num_prompts_of_benchmark": 1000,
        "measures": {"overall": {"value": 0.3, "low": 0.2, "high": 0.4, "num_prompts": 8}},
        "pictures": {"model": "runs/step_8/model", "rewriter": "semantic CoT"},
        "data": {"departures": []},
        "prompts": [],
    }
    path = tmp_path / "wise.json"
    path.write_text(json.dumps(content))
    assert main(["table", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "| **model** [1] | 0.300 (0.200–0.400) |"
    assert "| T2I-R1 [3] | 0.540 |" in lines
    assert "[1] CoT: semantic CoT; scorer: wise[judge=other]; 8 of 1000 prompts  " in lines
    assert "[3] published: T2I-R1's paper; with its semantic CoT (third-party)  " in lines


def test_no_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert main(["table", str(tmp_path / "x.json")]) == 2
    assert "is no result of `python -m rewards.benchmark`" in capsys.readouterr().err
