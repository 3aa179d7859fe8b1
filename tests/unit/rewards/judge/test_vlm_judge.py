"""rewards/judge/vlm_judge.py and rewards/clients/, against a small server on this machine."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest

from configs.errors import ConfigError, RewardError
from rewards.judge import UnifiedReward, VlmJudgeReward
from rollout.records import Prompt, Score, UInt8Array
from tests.judge_server import Answer, JudgeServer, picture_of, question_of, reply

KEY = "sk-very-secret"


def judge(server: JudgeServer, **options: Any) -> VlmJudgeReward:
    return VlmJudgeReward(**{"device": "cpu", "url": server.url, "model": "m", "backoff_s": 0.01, **options})


PICTURES: UInt8Array = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
PROMPTS = [Prompt(str(i), f"picture {i}") for i in range(6)]


def ask(reward: VlmJudgeReward) -> Score:
    """The score of the first picture; raises the error that stands in its place."""
    (answer,) = reward.score(PICTURES[:1], PROMPTS[:1])
    if isinstance(answer, RewardError):
        raise answer
    return answer


def test_each_picture_gets_the_number_of_its_own_reply_in_order(server: JudgeServer) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        index = next(i for i in range(6) if f'"picture {i}"' in question_of(body))
        np.testing.assert_array_equal(picture_of(body), PICTURES[index])
        return reply(f"It could be Score: 10, but it is not.\nScore: **{index}.5**")

    server.answer = answer
    scores = judge(server, num_parallel=3).score(PICTURES, PROMPTS)
    assert [score.value for score in scores] == pytest.approx([(i + 0.5) / 10 for i in range(6)])
    assert all("It could be" in score.parts["reply"] for score in scores)
    path, _, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 512)


def test_a_picture_scores_the_same_alone_and_in_company(server: JudgeServer) -> None:
    server.answer = lambda body: reply(f"Score: {picture_of(body).mean() / 255 * 10:.6f}")
    reward = judge(server)
    batch = [score.value for score in reward.score(PICTURES, PROMPTS)]
    single = [reward.score(PICTURES[i : i + 1], PROMPTS[i : i + 1])[0].value for i in range(6)]
    assert batch == pytest.approx(single, abs=1e-5)
    assert np.ptp(batch) > 1e-3


def test_question_pattern_and_range_are_options(server: JudgeServer) -> None:
    server.answer = lambda body: reply("3 of 4 {good}" if question_of(body) == "Is {this} a picture 0?" else "?")
    options = {"question": "Is {this} a {prompt}?", "pattern": r"(\d) of 4", "lowest": 1, "highest": 4}
    (score,) = judge(server, **options).score(PICTURES[:1], PROMPTS[:1])
    assert score.value == pytest.approx(2 / 3)
    (score,) = judge(server, **options, rescale=False).score(PICTURES[:1], PROMPTS[:1])
    assert score.value == 3.0


@pytest.mark.parametrize(("version", "has_elements"), [("qwen", True), ("llava", False)])
def test_unified_reward_asks_in_its_versions_words_and_reads_its_final_score(
    server: JudgeServer, version: str, has_elements: bool
) -> None:
    server.answer = lambda body: reply("cat (animal): 1\nAlignment Score: 2\nFinal Score: 3.5")
    (score,) = UnifiedReward(device="cpu", url=server.url, version=version).score(PICTURES[:1], PROMPTS[:1])
    assert not isinstance(score, RewardError)
    assert score.value == 3.5
    body = server.requests[0][2]
    assert body["model"] == "CodeGoat24/UnifiedReward-qwen-7b"
    assert question_of(body).endswith("Text Caption: [picture 0]")
    assert "score from 1 to 5 after 'Final Score:'" in question_of(body)
    assert ("element (type): value" in question_of(body)) == has_elements


def test_unified_reward_2_is_the_mean_of_its_three_axes(server: JudgeServer) -> None:
    server.answer = lambda body: reply("Alignment Score (1-5): 4\nCoherence Score (1-5): **3.5**\nStyle Score (1-5): 3")
    reward = UnifiedReward(device="cpu", url=server.url, model="UnifiedReward-2.0-qwen3vl-8b", version="2")
    (score,) = reward.score(PICTURES[:1], PROMPTS[:1])
    assert not isinstance(score, RewardError)
    assert score.value == pytest.approx(3.5)
    assert {axis: score.parts[axis] for axis in ("alignment", "coherence", "style")} == {
        "alignment": 4.0,
        "coherence": 3.5,
        "style": 3.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Alignment Score (1-5): 4\nStyle Score (1-5): 3", "Coherence: the judge's reply holds nothing like"),
        ("Alignment Score: 4\nCoherence Score: 9\nStyle Score: 3", r"Coherence: the judge gave 9\.0, not 1\.0 to 5\.0"),
    ],
)
def test_an_axis_that_is_missing_or_out_of_range_is_an_error_of_its_picture(
    server: JudgeServer, text: str, message: str
) -> None:
    server.answer = lambda body: reply(text)
    (answer,) = UnifiedReward(device="cpu", url=server.url, version="2").score(PICTURES[:1], PROMPTS[:1])
    assert isinstance(answer, RewardError)
    assert re.search(message, str(answer))


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="version of unified_reward is '3'; set it to one of llava, qwen, 2"):
        UnifiedReward(device="cpu", url="http://localhost:1/v1", version="3")


def test_further_fields_and_jpeg_go_out_with_each_request(server: JudgeServer) -> None:
    thinking = {"chat_template_kwargs": {"enable_thinking": False}}
    (score,) = judge(server, extra_body=thinking, image_format="jpeg").score(PICTURES[:1], PROMPTS[:1])
    assert not isinstance(score, RewardError)
    body = server.requests[0][2]
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert picture_of(body, "jpeg").shape == PICTURES[0].shape
    with pytest.raises(ConfigError, match="image_format is 'gif'; set it to png or jpeg"):
        judge(server, image_format="gif")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I cannot say.", "the judge's reply holds nothing like .*I cannot say"),
        ("Score: 11", r"the judge gave 11\.0, not 0\.0 to 10\.0"),
        (None, "answered without a text"),
    ],
)
def test_a_reply_without_a_number_in_range_is_an_error_and_no_nought(
    server: JudgeServer, text: str | None, message: str
) -> None:
    server.answer = lambda body: reply(text)
    with pytest.raises(RewardError, match=message):
        ask(judge(server))
    assert len(server.requests) == 1


def test_a_picture_without_an_answer_costs_itself_and_each_is_asked_for_once(server: JudgeServer) -> None:
    server.answer = lambda body: reply("I cannot say." if '"picture 2"' in question_of(body) else "Score: 5")
    answers = judge(server).score(PICTURES, PROMPTS)
    assert [i for i, answer in enumerate(answers) if isinstance(answer, RewardError)] == [2]
    assert len(server.requests) == 6


def test_a_judge_that_is_closed_leaves_no_thread(server: JudgeServer) -> None:
    server.answer = lambda body: reply("Score: 5")
    before = set(threading.enumerate())
    reward = judge(server, num_parallel=3)
    reward.score(PICTURES, PROMPTS)
    threads = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("judge")]
    assert threads
    reward.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(server: JudgeServer, status: int) -> None:
    server.answer = lambda body: (status, "busy") if len(server.requests) < 3 else reply("Score: 7")
    (score,) = judge(server, retries=2).score(PICTURES[:1], PROMPTS[:1])
    assert score.value == 0.7
    assert len(server.requests) == 3


def test_a_server_that_stays_busy_is_named_with_what_it_said(server: JudgeServer) -> None:
    server.answer = lambda body: (503, "out of memory")
    with pytest.raises(RewardError, match=r"127\.0\.0\.1.* no answer in 3 tries, the last: status 503: out of memory"):
        ask(judge(server, retries=2))


def test_a_server_that_hangs_is_given_up_after_its_time(server: JudgeServer) -> None:
    done = threading.Event()

    def hang(body: dict[str, Any]) -> Answer:
        done.wait(60)
        return reply("Score: 5")

    server.answer = hang
    with pytest.raises(RewardError, match=r"no answer in 2 tries, the last: TimeoutError"):
        ask(judge(server, retries=1, timeout_s=0.3))
    done.set()


def test_a_server_that_is_not_there_is_an_error() -> None:
    reward = VlmJudgeReward(device="cpu", url="http://127.0.0.1:9/v1", model="m", retries=0)
    with pytest.raises(RewardError, match="no answer in 1 tries, the last: URLError"):
        ask(reward)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, "<html>"), "/v1/chat/completions did not answer in JSON: <html>"),
        ((200, {"choices": []}), r"did not answer as an OpenAI-compatible server does: \{"),
        ((200, "[1]"), r"did not answer as an OpenAI-compatible server does: \[1\]"),
    ],
)
def test_another_kind_of_server_is_recognised(server: JudgeServer, answer: Answer, message: str) -> None:
    server.answer = lambda body: answer
    with pytest.raises(RewardError, match=message):
        ask(judge(server))


def test_the_key_is_sent_and_shows_nowhere_else(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    reward = judge(server, api_key_env="JUDGE_KEY")
    reward.score(PICTURES[:1], PROMPTS[:1])
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    server.answer = lambda body: (401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(RewardError, match=r"status 401: Incorrect API key provided: \*\*\*") as error:
        ask(reward)
    assert KEY not in str(error.value)
    assert KEY not in repr(vars(reward))
    assert len(server.requests) == 2, "a refused key is not tried again"


def test_a_redirect_is_refused_and_the_key_stays(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.answer = lambda body: (302, "moved")
    with pytest.raises(RewardError, match="refused the request with status 302"):
        ask(judge(server, api_key_env="JUDGE_KEY"))
    assert [path for path, _, _ in server.requests] == ["/v1/chat/completions"]


def test_without_a_key_none_is_sent(server: JudgeServer) -> None:
    judge(server).score(PICTURES[:1], PROMPTS[:1])
    assert "Authorization" not in server.requests[0][1]


def test_a_judge_with_a_temperature_says_that_it_is_random(server: JudgeServer) -> None:
    assert judge(server, temperature=0.7).is_random
    assert not judge(server).is_random


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "url of vlm_judge is 'localhost:8000'; give it like http"),
        ({"question": "Is it good?"}, r"question of vlm_judge is 'Is it good\?'; put \{prompt\}"),
        ({"pattern": "Score: ("}, "pattern of vlm_judge .* no regular expression"),
        ({"pattern": "Score"}, "pattern of vlm_judge is 'Score'; put the number into a group"),
        ({"lowest": 10}, r"lowest of vlm_judge is 10; set it below highest, which is 10\.0"),
        (
            {"api_key_env": "NO_SUCH_VARIABLE"},
            "api_key_env of vlm_judge is 'NO_SUCH_VARIABLE', and that env",
        ),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VlmJudgeReward(**{"device": "cpu", "url": "http://localhost/v1", "model": "m", **options})


def test_unified_rewards_errors_name_it() -> None:
    with pytest.raises(ConfigError, match="url of unified_reward is 'localhost'"):
        UnifiedReward(device="cpu", url="localhost")
