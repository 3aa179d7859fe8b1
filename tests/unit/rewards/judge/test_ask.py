"""python -m rewards.ask, against a small server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.ask import main, read_questions
from rewards.judge.logprob_judge import questions_of
from rollout.prompts.files import parse_prompt, read_records
from rollout.records import Prompt, SpatialInfo
from tests.judge_server import Answer, JudgeServer, question_of, reply

RECORDS: list[dict[str, Any]] = [
    {"prompt": "a red cat", "task_type": "color", "nouns": ["cat"], "seed": 7},
    {"prompt": "a dog left of a box", "spatial_info": {"obj1": "dog", "obj2": "box", "locality": "left of"}},
    {"prompt": "a star", "metadata": {"questions": ["Is there a star?"]}},
]


def split(body: dict[str, Any]) -> Answer:
    prompt = question_of(body).split("Prompt: ")[1].splitlines()[0]
    return reply(f"```json\n{json.dumps([f'Is there {prompt}?', 'Is it a picture?'])}\n```")


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


def ask(server: JudgeServer, prompts: Path, *more: str) -> int:
    return main([str(prompts), "--judge", server.url, "--model", "m", "--retries", "1", *more])


def written(path: Path) -> list[Prompt]:
    return [parse_prompt(record, str(number)) for _, number, record in read_records(path)]


def test_each_prompt_gets_its_questions_and_keeps_all_else(server: JudgeServer, prompts_file: Path) -> None:
    server.answer = split
    assert ask(server, prompts_file) == 0
    first, second, third = written(prompts_file.with_suffix(".questions.jsonl"))
    assert [question.text for question in questions_of(first, ())] == ["Is there a red cat?", "Is it a picture?"]
    assert (first.text, first.task_type, first.nouns, first.metadata["seed"]) == ("a red cat", "color", ("cat",), 7)
    assert second.spatial_info == SpatialInfo("dog", "box", "left of")
    assert third.metadata["questions"] == ["Is there a star?"]
    assert len(server.requests) == 2, "a prompt that brings its own questions is not asked about"
    assert len(server.requests[0][2]["messages"][0]["content"]) == 1, "no picture is sent"


def test_a_prompt_whose_reply_cannot_be_read_is_named_and_asked_again_later(
    server: JudgeServer, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda body: reply("I would rather not.") if "red cat" in question_of(body) else split(body)
    assert ask(server, prompts_file) == 1
    assert "prompts.jsonl:1: the reply holds no list of texts: I would rather not." in capsys.readouterr().err
    asked_twice = [question_of(body) for _, _, body in server.requests if "red cat" in question_of(body)]
    assert len(asked_twice) == 2
    assert "Your last reply was no such list" in asked_twice[1]
    output = prompts_file.with_suffix(".questions.jsonl")
    assert [prompt.text for prompt in written(output)] == ["a dog left of a box", "a star"]
    server.answer = split
    assert ask(server, prompts_file, "--resume") == 0
    assert [prompt.text for prompt in written(output)] == ["a dog left of a box", "a star", "a red cat"]


def test_a_server_without_an_answer_is_tried_again_by_the_client_alone(
    server: JudgeServer, prompts_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.answer = lambda body: (503, "busy")
    assert ask(server, prompts_file) == 1
    assert len(server.requests) == 2 * 2, "two prompts, each sent once and once more"
    assert "no answer in 2 tries, the last: status 503: busy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--judge", "localhost:8000"), "--judge is 'localhost:8000'; give it like http://localhost:8000/v1"),
        (("--api-key-env", "NO_SUCH_KEY"), "--api-key-env is 'NO_SUCH_KEY', and that environment variable is not set"),
    ],
)
def test_a_wrong_option_is_named_as_the_command_has_it(
    server: JudgeServer, prompts_file: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert ask(server, prompts_file, *options) == 2
    assert message in capsys.readouterr().err
    assert server.requests == []


def test_nothing_is_overwritten_unasked(
    server: JudgeServer, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = split
    before = prompts_file.read_text()
    assert ask(server, prompts_file, "--output", str(prompts_file), "--overwrite") == 2
    assert prompts_file.read_text() == before
    assert "is the prompts file itself" in capsys.readouterr().err
    assert ask(server, prompts_file) == 0
    assert ask(server, prompts_file) == 2
    assert "exists; go on with it by --resume" in capsys.readouterr().err
    assert ask(server, prompts_file, "--overwrite") == 0


def test_a_bad_record_is_named_by_its_line(
    server: JudgeServer, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts_file.write_text(prompts_file.read_text() + '{"text": 3}\n')
    assert ask(server, prompts_file) == 2
    assert "line 4" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    ("text", "questions"),
    [('["a?", "b?", "a?"]', ["a?", "b?"]), ('Here: ["a?"] as asked.', ["a?"]), ('```\n["a?"]\n```', ["a?"])],
)
def test_a_list_is_found_in_its_reply(text: str, questions: list[str]) -> None:
    assert read_questions(text, 10) == questions
