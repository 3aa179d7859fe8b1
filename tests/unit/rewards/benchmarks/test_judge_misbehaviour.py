"""Each judged benchmark against a judge that misbehaves differently for each picture: what comes of every one."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from tests.judge_server import JudgeServer, reply
from tests.unit.rewards.benchmarks.judged_data import write_data
from tests.unit.rewards.benchmarks.oneig_data import write_repository
from tests.unit.rewards.benchmarks.worlds import write_all

BROKEN, BUSY = "broken", "busy"
KINDS = ("good", "markdown", "truncated", "refusing", BROKEN, BUSY)
"""Of the first six pictures in turn. broken: HTTP 500 for ever. busy: HTTP 500, then 429 with Retry-After, then
silence, then a good reply."""
REFUSAL = "I'm sorry, but I can't help with that."
REPLIES: Mapping[str, Mapping[str, str]] = {
    "geneval_pp": {
        "good": '{"correct": 1, "reason": "all there"}',
        "markdown": 'Sure:\n```json\n{"correct": 1, "reason": "all there"}\n```',
        "truncated": '{"correct": 1, "reason": "all th',
    },
    "imagine": {
        "good": "Fantasy Fulfillment: 8\nIdentity Preservation: 7\nAesthetic Quality: 9",
        "markdown": "**Fantasy Fulfillment**: 8\n**Identity Preservation**: 7\n**Aesthetic Quality**: 9",
        "truncated": "Fantasy Fulfillment: 8\nIdentity Pres",
    },
    "wise": {
        "good": "Consistency: 2\nRealism: 1\nAesthetic Quality: 0",
        "markdown": "**Consistency**: 2\n**Realism**: 1\n**Aesthetic Quality**: 0",
        "truncated": "Consistency: 2\nReal",
    },
    "wise_verified": {"good": "Score: 1", "markdown": "**Score**: 1", "truncated": "The picture shows a tu"},
    "oneig": {"good": "Yes", "markdown": "**Yes**", "truncated": "Ye"},
}
UNREADABLE = None
SCORES: Mapping[str, tuple[float | None, ...]] = {  # of the kinds in their order, as the official parsers have it
    "geneval_pp": (1.0, 1.0, UNREADABLE, UNREADABLE, UNREADABLE, 1.0),
    "imagine": (7.4, -1.0, -1.0, -1.0, UNREADABLE, 7.4),
    "wise": (0.8, 0.8, UNREADABLE, UNREADABLE, UNREADABLE, 0.8),
    "wise_verified": (1.0, 1.0, UNREADABLE, UNREADABLE, UNREADABLE, 1.0),
    "oneig": (1.0, 0.0, 0.0, 0.0, UNREADABLE, 1.0),
}
RETRIES = 3


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.close()


def level_of(place: int) -> int:
    """Of the grey picture at that place."""
    return 20 + 40 * place


def place_of(body: Mapping[str, Any]) -> int:
    """Of the picture that a request shows."""
    parts = [
        part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    (url,) = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
    return round((float(np.asarray(picture).mean()) - 20) / 40)


class Misbehaving:
    """Answers by the picture that it is shown."""

    def __init__(self, name: str) -> None:
        self.name, self.seen, self._lock = name, Counter[int](), threading.Lock()

    def __call__(self, body: dict[str, Any]) -> Any:
        place = place_of(body)
        with self._lock:
            self.seen[place] += 1
            number = self.seen[place]
        kind = KINDS[place]
        if kind == BROKEN:
            return 500, "out of order"
        if kind == BUSY and number <= RETRIES:
            if number == RETRIES:
                time.sleep(1.2)  # the client has given up by then
            return (500, "oops") if number == 1 else (429, "slow down", {"Retry-After": "0"})
        return reply(REFUSAL if kind == "refusing" else REPLIES[self.name].get(kind, REPLIES[self.name]["good"]))


def data_of(name: str, folder: Path) -> Path:
    return write_repository(folder / "data") if name == "oneig" else write_data(folder / "data")[name]


@pytest.mark.parametrize("name", sorted(REPLIES))
def test_every_misbehaviour_costs_what_it_costs_officially_and_no_other_picture(
    name: str, judge: JudgeServer, tmp_path: Path
) -> None:
    data = data_of(name, tmp_path)
    items = make_benchmark(name).read_data(data).items[: len(KINDS)]
    grey = [np.full((32, 32, 3), level_of(place), np.uint8) for place in range(len(items))]
    write_all(items, tmp_path / "images", lambda item, number: grey[items.index(item)])
    answering = judge.answer = Misbehaving(name)
    settings = (f"retries={RETRIES}", "backoff_s=0.01", "timeout_s=1")
    quick = [text for setting in settings for text in ("--scorer", setting)]
    where = ["--data", str(data), "--images", str(tmp_path / "images"), "--output-dir", str(tmp_path / "out")]
    assert main([name, *where, "--judge-url", judge.url, *quick]) == 1  # not complete

    result = json.loads((tmp_path / "out" / name / "results" / f"{name}.json").read_text())
    of_key = {prompt["key"]: prompt for prompt in result["prompts"]}
    scores = {
        kind: None if of_key[item.key]["values"] == [None] else of_key[item.key]["score"]
        for kind, item in zip(KINDS, items, strict=True)
    }
    assert scores == pytest.approx(dict(zip(KINDS, SCORES[name], strict=True)))
    failed = [item.files[0] for item, score in zip(items, SCORES[name], strict=True) if score is UNREADABLE]
    assert sorted(result["failed"]) == sorted(failed)
    assert "500" in result["failed"][items[KINDS.index(BROKEN)].files[0]]
    assert answering.seen[KINDS.index(BROKEN)] == 1 + RETRIES

    lines = (tmp_path / "out" / name / "answers" / f"{name}.jsonl").read_text().splitlines()
    kept = {line["key"]: line for line in map(json.loads, lines)}
    for kind in ("markdown", "truncated"):  # word by word, so that a parser can run again
        assert json.dumps(REPLIES[name][kind])[1:-1] in json.dumps(kept[items[KINDS.index(kind)].key]["answer"])
