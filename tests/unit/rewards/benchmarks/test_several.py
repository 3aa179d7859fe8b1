"""Several benchmarks with one command, and the check that an installation sees what others see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.errors import RewardError
from rewards.benchmark import main
from rewards.benchmarks import BENCHMARKS, make_benchmark
from rewards.benchmarks.geneval.shapes import ShapesScorer
from tests.judge_server import JudgeServer, reply
from tests.unit.rewards.benchmarks.judged_data import write_data
from tests.unit.rewards.benchmarks.worlds import right_picture, write_all

GOOD = "Score: 1"


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer()
    server.answer = lambda body: reply(GOOD)
    yield server
    server.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Repositories under the names that `git clone` gives them, and pictures for two benchmarks."""
    data = write_data(tmp_path / "data")
    data["wise_verified"].rename(tmp_path / "WISE")
    items = make_benchmark("shapes").read_data(None).items
    write_all(items, tmp_path / "images", lambda item, number: right_picture(item.record, number))
    verified = make_benchmark("wise_verified").read_data(tmp_path / "WISE").items
    write_all(verified, tmp_path / "images", lambda item, number: right_picture(items[0].record))
    return tmp_path


def run(root: Path, name: str, *options: str) -> int:
    fixed = ["--images", str(root / "images"), "--data", str(root), "--output-dir", str(root / "out"), "--limit", "6"]
    return main([name, *fixed, *options])


def test_all_runs_what_can_be_run_and_says_what_the_others_lack(
    root: Path, judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.answer = lambda body: reply("Consistency: 2\nRealism: 2\nAesthetic Quality: 2\nScore: 1")
    for path in (root / "WISE" / "WISE_legacy").rglob("*.json"):
        path.unlink()  # one of the two benchmarks of that repository lacks its files
    assert run(root, "all", "--judge-url", judge.url) == 0
    shown = capsys.readouterr().out
    for name in ("shapes", "wise_verified"):
        result = json.loads((root / "out" / name / "results" / f"{name}.json").read_text())
        assert (result["is_complete"], result["measures"]["overall"]["value"]) == (True, 1.0)
    left_out = {line.split(": ")[1]: line for line in shown.splitlines() if line.startswith("left out: ")}
    assert set(left_out) == set(BENCHMARKS) - {"shapes", "wise_verified"}
    assert "lacks WISE_legacy/data/cultural_common_sense.json" in left_out["wise"]
    assert "lacks dpg_bench.csv" in left_out["dpg"]


def test_one_that_fails_does_not_keep_the_next_from_running(
    root: Path, monkeypatch: pytest.MonkeyPatch, judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: ShapesScorer, asked: object) -> None:
        raise RewardError("its scorer is out of order")

    monkeypatch.setattr(ShapesScorer, "answers", fail)
    assert run(root, "shapes,wise_verified", "--judge-url", judge.url) == 1
    assert "FAILED: shapes: its scorer is out of order" in capsys.readouterr().out
    assert (root / "out" / "wise_verified" / "results" / "wise_verified.json").exists()


def test_wrong_input_of_one_of_several_is_told_before_anything_is_done(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, "shapes,wise_verified") == 2
    assert "wise_verified needs --judge-url" in capsys.readouterr().err
    assert not (root / "out").exists()


def test_settings_are_of_one_benchmark_or_of_all_that_have_them(
    root: Path, judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    several = ("shapes,wise_verified", "--judge-url", judge.url)
    assert run(root, *several, "--scorer", "retries=0", "--scorer", "wise_verified.num_parallel=2") == 0
    assert run(root, *several, "--scorer", "shapes.retries=0") == 2
    assert "--scorer shapes.retries: there is no such setting; shapes has none" in capsys.readouterr().err
    assert run(root, *several, "--scorer", "dpg.batch_size=1") == 2
    assert "--scorer dpg.batch_size: dpg is not among shapes, wise_verified" in capsys.readouterr().err


def test_the_shapes_scorer_agrees_with_the_reference_that_is_shipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shapes", "--self-check", "--output-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("agrees with references.json") == 6


def test_a_check_is_kept_and_a_later_one_compared_with_it(
    root: Path, judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["wise_verified", "--self-check", "--judge-url", judge.url, "--data", str(root / "WISE")]
    fixed = ["--output-dir", str(root / "out")]
    assert main([*check, *fixed]) == 1  # the invented data are not the official ones
    shown = capsys.readouterr().out
    assert "NOT the official file" in shown
    assert "kept: nothing to compare with yet" in shown


def test_another_answer_than_before_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "references.json").write_text("{}")
    monkeypatch.setattr("rewards.benchmarks.checking.checks.REFERENCES", tmp_path / "references.json")
    check = ["shapes", "--self-check", "--output-dir", str(tmp_path)]
    assert main(check) == 0
    kept = tmp_path / "shapes" / "self_check.shapes.json"
    assert main(check) == 0
    content = json.loads(kept.read_text())
    content["numbers"]["counting"] *= 1.1
    kept.write_text(json.dumps(content))
    assert main(check) == 1
