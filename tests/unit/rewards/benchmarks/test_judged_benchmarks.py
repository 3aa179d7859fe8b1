"""The judged benchmarks against a scripted judge on this machine: what it is asked, what becomes of what it answers."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from tests.judge_server import JudgeServer, reply
from tests.pictures import tiled_pictures
from tests.unit.rewards.benchmarks.judged_data import write_data
from tests.unit.rewards.benchmarks.worlds import write_all

GOOD = {
    "geneval_pp": '```json\n{"correct": 1, "reason": "all there"}\n```',
    "imagine": "Fantasy Fulfillment: 8\nReason: a\nIdentity Preservation: 7\nReason: b\nAesthetic Quality: 9",
    "wise": "Consistency: 2\nRealism: 1\nAesthetic Quality: 0",
    "wise_verified": "<think>is it?</think>\nScore: 1",
}
OVERALL = {"geneval_pp": 1.0, "imagine": 7.4, "wise": 0.8, "wise_verified": 1.0}
NAMES = sorted(GOOD)


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    return write_data(tmp_path / "data")


def run(
    name: str, judge: JudgeServer, data: dict[str, Path], folder: Path, *options: str
) -> tuple[int, dict[str, Any]]:
    images = folder / "images"
    items = make_benchmark(name).read_data(data[name]).items
    if not images.exists():
        pictures = tiled_pictures(len(items), height=24, width=32)
        write_all(items, images, lambda item, number: pictures[items.index(item)])
    fixed = ["--data", str(data[name]), "--images", str(images), "--judge-url", judge.url]
    quick = [text for setting in ("retries=2", "backoff_s=0.01", "timeout_s=1") for text in ("--scorer", setting)]
    code = main([name, *fixed, *quick, "--output-dir", str(folder / "out"), *options])
    results = sorted((folder / "out" / name / "results").glob("*.json"))
    return code, json.loads(results[-1].read_text()) if results else {}


def served(text: str, model: str = "served") -> Any:
    status, body = reply(text)[:2]
    assert isinstance(body, dict)
    return status, body | {"model": model}


def key_of(body: dict[str, Any]) -> str:
    text: str = body["messages"][1]["content"][0]["text"]
    return text


@pytest.mark.parametrize("name", NAMES)
def test_a_good_judge_is_asked_once_a_picture_and_kept_word_by_word(
    name: str, judge: JudgeServer, data: dict[str, Path], tmp_path: Path
) -> None:
    judge.answer = lambda body: served(GOOD[name], "judge-2026-01")
    code, result = run(name, judge, data, tmp_path)
    assert code == 0
    assert result["measures"]["overall"]["value"] == pytest.approx(OVERALL[name])
    assert result["metric"] == name
    assert (result["scorer"]["judge"], result["scorer"]["seen_judges"]) == (
        make_benchmark(name).judges[0],  # type: ignore[attr-defined]
        ["judge-2026-01"],
    )
    lines = (tmp_path / "out" / name / "answers" / f"{name}.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert [answer["replies"] for answer in answers] == [[GOOD[name]]] * 6
    assert all(answer["model"] == "judge-2026-01" and answer["date"] for answer in answers)
    assert len(judge.requests) == 6
    code, again = run(name, judge, data, tmp_path)
    assert (code, again["measures"]) == (0, result["measures"])
    assert len(judge.requests) == 6, "nothing is asked twice"


@pytest.mark.parametrize("name", NAMES)
def test_the_judge_reads_the_official_scripts_words_and_sees_the_picture(
    name: str, judge: JudgeServer, data: dict[str, Path], tmp_path: Path
) -> None:
    judge.answer = lambda body: served(GOOD[name])
    run(name, judge, data, tmp_path)
    benchmark = make_benchmark(name)
    items = benchmark.read_data(data[name]).items
    body = next(body for _, _, body in judge.requests if items[1].prompt in key_of(body))
    assert body["messages"][0] == {"role": "system", "content": "Be strict."}
    text, picture = body["messages"][1]["content"]
    assert {name: body[name] for name in benchmark.request} == benchmark.request  # type: ignore[attr-defined]
    expected = {
        "geneval_pp": "Draw: A photo of 2 mugs | This image should contain:\n"
        "- red-colored larger 2 mugs located in the left part of the image.",
        "imagine": "P: A teapot of fur 1 E: note 1",
        "wise": "P: Flower 2 E: tulip 2",
        "wise_verified": "P: Flower 401 E: tulip 401",
    }
    assert text["text"] == expected[name]
    sent = base64.b64decode(picture["image_url"]["url"].partition("base64,")[2])
    file = (tmp_path / "images" / items[1].files[0]).read_bytes()
    assert (sent == file) == name.startswith("wise"), "WISE sends the file, the others a JPEG of it"
    assert Image.open(io.BytesIO(sent)).size == Image.open(io.BytesIO(file)).size


@pytest.mark.parametrize("name", ["geneval_pp", "wise", "wise_verified"])
def test_what_cannot_be_read_is_asked_again_then_told_loudly_and_asked_again_next_time(
    name: str, judge: JudgeServer, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = make_benchmark(name).read_data(data[name]).items[1]

    def refuse_one(body: dict[str, Any]) -> Any:
        return served("I cannot judge that." if bad.prompt in key_of(body) else GOOD[name])

    judge.answer = refuse_one
    code, result = run(name, judge, data, tmp_path)
    assert (code, result["num_failed"], result["is_complete"]) == (1, 1, False)
    assert "INCOMPLETE: 1 of 6 files could not be judged and count as the lowest score" in capsys.readouterr().out
    assert 0 < result["measures"]["overall"]["value"] < OVERALL[name]
    assert len(judge.requests) == 5 + 3
    judge.answer = lambda body: served(GOOD[name])
    code, result = run(name, judge, data, tmp_path)
    assert (code, len(judge.requests)) == (0, 5 + 3 + 1)
    assert result["measures"]["overall"]["value"] == pytest.approx(OVERALL[name])


def test_a_truncated_and_a_bold_reply_are_read_as_the_official_parsers_do(
    judge: JudgeServer, data: dict[str, Path], tmp_path: Path
) -> None:
    bold = "**Fantasy Fulfillment**: 8\n**Identity Preservation**: 7\n**Aesthetic Quality**: 9"
    judge.answer = lambda body: served(bold)
    code, result = run("imagine", judge, data, tmp_path / "bold")
    scores = {name: measure["value"] for name, measure in result["measures"].items()}
    assert code == 0
    assert (scores["overall"], scores["overall_as_shipped"], scores["overall_corrected"]) == (
        -1.0,
        -1.0,
        pytest.approx(7.4),
    )
    judge.answer = lambda body: served("Fantasy Fulfillment: 8\nReason: a\nIdentity Pres")
    _, result = run("imagine", judge, data, tmp_path / "cut")
    assert result["measures"]["overall"]["value"] == pytest.approx(-1.0)
    judge.answer = lambda body: served('{"correct": 1, "reason": "the mug is')
    code, result = run("geneval_pp", judge, data, tmp_path / "json")
    assert (code, result["num_failed"], result["measures"]["overall"]["value"]) == (1, 6, 0.0)


def test_a_busy_judge_is_waited_for_as_long_as_it_asks(
    judge: JudgeServer, data: dict[str, Path], tmp_path: Path
) -> None:
    times: dict[str, list[float]] = {}
    lock = threading.Lock()

    def busy_first(body: dict[str, Any]) -> Any:
        with lock:
            own = times.setdefault(key_of(body), [])
            own.append(time.monotonic())
            number = len(own)
        if number == 1:
            return 429, "slow down", {"Retry-After": "1"}
        return (500, "oops") if number == 2 else served(GOOD["wise"])

    judge.answer = busy_first
    code, result = run("wise", judge, data, tmp_path)
    assert (code, result["is_complete"]) == (0, True)
    assert all(own[1] - own[0] >= 1.0 for own in times.values())


def test_a_slow_judge_costs_its_picture_and_no_other(judge: JudgeServer, data: dict[str, Path], tmp_path: Path) -> None:
    release = threading.Event()

    def slow_one(body: dict[str, Any]) -> Any:
        if "Flower 567" in key_of(body):
            release.wait(20)
        return served(GOOD["wise"])

    judge.answer = slow_one
    try:
        code, result = run("wise", judge, data, tmp_path, "--scorer", "retries=1")
    finally:
        release.set()
    assert (code, list(result["failed"])) == (1, ["567.png"])
    assert "TimeoutError" in result["failed"]["567.png"] or "timed out" in result["failed"]["567.png"]


def test_a_run_that_was_ended_asks_only_for_the_rest(
    judge: JudgeServer, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.answer = lambda body: served(GOOD["wise"])
    from rewards.benchmarks import folders

    kept: list[str] = []
    append = folders.append_line

    def end_after_two(path: Path, line: Any) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        append(path, line)
        kept.append(line["file"])

    monkeypatch.setattr(folders, "append_line", end_after_two)
    code, _ = run("wise", judge, data, tmp_path, "--scorer", "num_parallel=1")
    assert code == 130
    monkeypatch.undo()
    judge.requests.clear()
    code, result = run("wise", judge, data, tmp_path, "--scorer", "num_parallel=1")
    assert (code, result["is_complete"]) == (0, True)
    asked = {key_of(body) for _, _, body in judge.requests}
    assert len(kept) == 2
    assert not any(f"Flower {Path(file).stem} " in text for file in kept for text in asked)


def test_another_judge_gives_the_metric_another_name(judge: JudgeServer, data: dict[str, Path], tmp_path: Path) -> None:
    judge.answer = lambda body: served(GOOD["wise"])
    _, result = run("wise", judge, data, tmp_path, "--judge-model", "Qwen/Qwen3-VL-8B-Instruct")
    assert result["metric"] == "wise[judge=Qwen/Qwen3-VL-8B-Instruct]"
    assert {body["model"] for _, _, body in judge.requests} == {"Qwen/Qwen3-VL-8B-Instruct"}


def test_a_judge_that_is_gone_ends_the_run_early(
    judge: JudgeServer, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("rewards.benchmarks.judged.scorer.MAX_FAILURES_IN_A_ROW", 3)
    judge.answer = lambda body: (401, "no such key")
    code, _ = run("wise", judge, data, tmp_path, "--scorer", "num_parallel=1")
    assert code == 1
    assert "the judge failed 3 pictures in a row, the last:" in capsys.readouterr().err
    assert len(judge.requests) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "wise needs --judge-url"), (["--judge-url", "localhost"], "--judge-url is 'localhost'")],
)
def test_a_missing_address_is_told(
    data: dict[str, Path], tmp_path: Path, options: list[str], message: str, capsys: Any
):
    images = tmp_path / "images"
    images.mkdir()
    fixed = ["--data", str(data["wise"]), "--images", str(images), "--output-dir", str(tmp_path / "out")]
    assert main(["wise", *fixed, *options]) == 2
    assert message in capsys.readouterr().err
