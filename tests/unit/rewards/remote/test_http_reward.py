"""The http reward against a server of its format: order, batches, what fails and what is tried again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from configs.errors import ConfigError, RewardError
from rewards.registry import create_reward
from rewards.remote import HttpReward
from rollout.records import CountInfo, Prompt, Score
from tests.reward_server import RewardServer, score_items

PICTURES = np.random.default_rng(0).integers(0, 256, (10, 6, 8, 3), dtype=np.uint8)
PROMPTS = [Prompt(f"p:{i}", f"picture {i}", metadata={"place": i}) for i in range(10)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RewardServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = RewardServer()
    yield server
    server.close()


def reward_of(server: RewardServer, **options: Any) -> HttpReward:
    return HttpReward(**{"device": "cpu", "url": server.url, "backoff_s": 0.01, **options})


def texts(answers: list[Any]) -> list[Any]:
    return [str(answer) if isinstance(answer, RewardError) else answer.value for answer in answers]


def test_each_picture_gets_its_own_score_in_requests_of_the_size_asked_for(server: RewardServer) -> None:
    answers = reward_of(server, pictures_per_request=4, num_parallel=2).score(PICTURES, PROMPTS)
    assert texts(answers) == pytest.approx([picture.mean() / 255 for picture in PICTURES])
    assert [answer.parts["prompt"] for answer in answers if isinstance(answer, Score)] == [p.text for p in PROMPTS]
    assert sorted(len(request["items"]) for request in server.requests) == [2, 4, 4]


def test_the_whole_record_of_a_prompt_and_the_plan_go_out(server: RewardServer) -> None:
    prompt = Prompt("p:1", "two cats", "numeracy", ("cat",), numeracy_info=(CountInfo("cat", 2),), metadata={"a": [1]})
    reward = create_reward("http", {"url": server.url}, "cpu")
    reward.score(PICTURES[:1], [prompt], ["two cats side by side"])
    reward.score(PICTURES[:1], [prompt])
    reward.close()
    first, second = (request["items"][0] for request in server.requests)
    assert first["prompt"] == {
        "prompt_id": "p:1",
        "prompt": "two cats",
        "task_type": "numeracy",
        "nouns": ["cat"],
        "numeracy_info": [{"obj_name": "cat", "num": 2}],
        "metadata": {"a": [1]},
    }
    assert (first["plan"], second["plan"]) == ("two cats side by side", None)


def test_a_server_may_decline_fail_and_explain_picture_by_picture(server: RewardServer) -> None:
    scores = [0.5, None, {"value": 2, "parts": {"why": "red"}}, {"value": None}, {"error": "no face"}, "0.5", {}, True]
    server.answer = lambda request: (200, {"scores": scores})
    answers = reward_of(server).score(PICTURES[:8], PROMPTS[:8])
    assert texts(answers)[:5] == [0.5, None, 2.0, None, f"{server.url}: no face"]
    assert all("where a number, null, or an object should be" in text for text in texts(answers)[5:])
    assert answers[2] == Score(2.0, {"why": "red"})


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: RewardServer, status: int) -> None:
    server.answer = lambda request: (status, "busy") if len(server.requests) < 3 else score_items(request)
    assert texts(reward_of(server).score(PICTURES[:1], PROMPTS[:1])) == pytest.approx([PICTURES[0].mean() / 255])
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((503, "out of memory"), "no answer in 3 tries, the last: status 503: out of memory"),
        ((400, {"detail": "only version 2"}), "refused the request with status 400"),
        ((302, ""), "refused the request with status 302"),
        ((200, "<html>"), "did not answer in JSON: <html>"),
        ((200, {"scores": [0.5]}), "must answer with scores: a list of 2"),
        ((200, [0.5, 0.5]), "must answer with scores: a list of 2"),
    ],
)
def test_a_request_without_scores_costs_its_own_pictures(server: RewardServer, answer: Any, message: str) -> None:
    def answer_once(request: dict[str, Any]) -> Any:
        return answer if request["items"][0]["prompt"]["prompt_id"] == "p:0" else score_items(request)

    server.answer = answer_once
    answers = texts(reward_of(server, pictures_per_request=2).score(PICTURES[:4], PROMPTS[:4]))
    assert all(message in text for text in answers[:2])
    assert answers[2:] == pytest.approx([picture.mean() / 255 for picture in PICTURES[2:4]])


def test_a_server_that_is_not_there_is_an_error_of_each_picture() -> None:
    reward = HttpReward(device="cpu", url="http://127.0.0.1:9/score", retries=0)
    assert all("no answer in 1 tries" in text for text in texts(reward.score(PICTURES[:2], PROMPTS[:2])))


def test_the_key_is_sent_and_shows_nowhere_else(server: RewardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_KEY", "s3cret")
    server.answer = lambda request: (401, "wrong key s3cret")
    (text,) = texts(reward_of(server, api_key_env="SCORE_KEY").score(PICTURES[:1], PROMPTS[:1]))
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    assert "wrong key ***" in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "url of http is 'localhost:8000'; give it like"),
        ({"num_parallel": 0}, "num_parallel of http is 0; set it to 1 or more"),
        ({"api_key_env": "NO_SUCH_KEY"}, "api_key_env of http is 'NO_SUCH_KEY'"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HttpReward(**{"device": "cpu", "url": "http://127.0.0.1:9/score", **options})
