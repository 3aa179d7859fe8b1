"""rewards/judge/logprob_judge.py, against sums of exponentials worked out by hand, and a small server."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from configs.errors import ConfigError, RewardError
from rewards.judge import LogprobJudgeReward
from rewards.judge.logprob_judge import QUESTION, expected_number, share_of
from rollout.records import Prompt, Score, UInt8Array
from tests.judge_server import Answer, JudgeServer, likeliest, picture_of, question_of, reply

PICTURES: UInt8Array = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)
PROMPTS = [Prompt(str(i), f"picture {i}") for i in range(4)]


def judge(server: JudgeServer, **options: Any) -> LogprobJudgeReward:
    return LogprobJudgeReward(**{"url": server.url, "model": "m", "backoff_s": 0.01, **options})


def values(reward: LogprobJudgeReward, prompts: list[Prompt] = PROMPTS) -> list[float | None]:
    answers = reward.score(PICTURES[: len(prompts)], prompts)
    errors = [answer for answer in answers if isinstance(answer, RewardError)]
    if errors:
        raise errors[0]
    return [answer.value for answer in answers if isinstance(answer, Score)]


def test_all_spellings_of_yes_count_against_all_of_no() -> None:
    tokens = {"Yes": math.log(0.3), " yes": math.log(0.1), "NO": math.log(0.2), "No.": math.log(0.1), "It": -1.0}
    assert share_of(tokens, "yes") == pytest.approx(0.4 / 0.6)
    assert share_of(tokens, "no") == pytest.approx(0.2 / 0.6)
    assert share_of({"yes": -0.01}, "yes") == 1.0


def test_the_expected_number_is_over_the_numbers_in_range_only() -> None:
    tokens = {"2": math.log(0.5), " 4": math.log(0.25), "9": math.log(0.2), "x": math.log(0.05)}
    assert expected_number(tokens, range(6)) == pytest.approx((2 * 0.5 + 4 * 0.25) / 0.75 / 5)
    assert expected_number(tokens, range(1, 10)) == pytest.approx(((2 * 0.5 + 4 * 0.25 + 9 * 0.2) / 0.95 - 1) / 8)


@pytest.mark.parametrize("tokens", [{}, {"It": -0.1, "The": -2.5}, {"yes": -9.0, "maybe": -0.1}])
def test_a_judge_that_answers_something_else_is_an_error(tokens: dict[str, float]) -> None:
    with pytest.raises(RewardError, match="does not answer with yes or no; the likeliest first token is"):
        share_of(tokens, "yes")
    with pytest.raises(RewardError, match="does not answer with a number from 0 to 9"):
        expected_number(tokens, range(10))


def test_each_picture_gets_the_probability_of_its_own_request_in_order(server: JudgeServer) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        index = next(i for i in range(4) if f'"picture {i}"' in question_of(body))
        np.testing.assert_array_equal(picture_of(body), PICTURES[index])
        return likeliest({"Yes": math.log((index + 1) / 10), "No": math.log(1 - (index + 1) / 10)})

    server.answer = answer
    assert values(judge(server, num_parallel=3)) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    body = server.requests[0][2]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["temperature"]) == (1, True, 20, 0.0)


def by_question(shares: dict[str, float]) -> Any:
    def answer(body: dict[str, Any]) -> Answer:
        share = next(share for text, share in shares.items() if text in question_of(body))
        return likeliest({"yes": math.log(share), "no": math.log(1 - share)})

    return answer


@pytest.mark.parametrize(
    ("combine", "expected"), [("mean", (0.9 + 0.4) / 2), ("geometric", math.sqrt(0.9 * 0.4)), ("lowest", 0.4)]
)
def test_several_questions_are_combined(server: JudgeServer, combine: str, expected: float) -> None:
    server.answer = by_question({"cat": 0.9, "red": 0.4})
    reward = judge(server, questions=["Is there a cat in {prompt}?", "Is {prompt} red?"], combine=combine)
    (score,) = reward.score(PICTURES[:1], PROMPTS[:1])
    assert isinstance(score, Score)
    assert score.value == pytest.approx(expected)
    assert score.parts == {"Is there a cat in picture 0?": 0.9, "Is picture 0 red?": 0.4}


def test_a_prompt_brings_its_own_questions_and_their_right_answers(server: JudgeServer) -> None:
    server.answer = by_question({"a dog": 0.2, "a cat": 0.7, "show": 0.5})
    own = ["Is there a cat? (a cat)", {"question": "Is there a dog? (a dog)", "answer": "no"}]
    prompts = [Prompt("a", "t", metadata={"questions": own}), Prompt("b", "t")]
    assert values(judge(server), prompts) == pytest.approx([(0.7 + 0.8) / 2, 0.5])
    assert QUESTION.replace("{prompt}", "t") in {question_of(body) for _, _, body in server.requests}


def test_without_questions_of_its_own_only_prompts_that_bring_some_are_scored(server: JudgeServer) -> None:
    server.answer = by_question({"cat": 0.7})
    prompts = [Prompt("a", "t", metadata={"questions": ["a cat?"]}), Prompt("b", "t")]
    assert values(judge(server, questions=[]), prompts) == [pytest.approx(0.7), None]
    assert [LogprobJudgeReward.applies_to(prompt, {"questions": []}) for prompt in prompts] == [True, False]
    assert LogprobJudgeReward.applies_to(prompts[1], {})


def test_the_expectation_over_digits_is_a_score_of_0_to_1(server: JudgeServer) -> None:
    server.answer = lambda body: likeliest({"3": math.log(0.5), "5": math.log(0.5)})
    reward = judge(server, answer="number", lowest=1, highest=5, questions=["Rate {prompt} from 1 to 5."])
    assert values(reward, PROMPTS[:1]) == pytest.approx([0.75])


def test_one_picture_without_an_answer_costs_only_itself(server: JudgeServer) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return likeliest({"It": -0.1}) if '"picture 1"' in question_of(body) else likeliest({"yes": -0.1, "no": -3.0})

    server.answer = answer
    answers = judge(server).score(PICTURES, PROMPTS)
    assert [isinstance(answer, RewardError) for answer in answers] == [False, True, False, False]


def test_a_server_without_logprobs_is_named(server: JudgeServer) -> None:
    server.answer = lambda body: reply("yes")
    with pytest.raises(RewardError, match=r"gives no log-probabilities of m; it must support logprobs"):
        values(judge(server), PROMPTS[:1])


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ("a cat?", "questions is str; give a list"),
        ([3], r"questions\[0\]: a text, or a question with answer yes or no, is expected: 3"),
        ([{"question": "?", "answer": "maybe"}], r"questions\[0\]"),
        (["fine?", {"text": "no"}], r"questions\[1\]"),
    ],
)
def test_malformed_questions_cost_their_own_picture(server: JudgeServer, questions: Any, message: str) -> None:
    server.answer = lambda body: likeliest({"yes": -0.1})
    prompts = [Prompt("file:3", "t", metadata={"questions": questions}), Prompt("b", "t")]
    bad, good = judge(server).score(PICTURES[:2], prompts)
    assert isinstance(good, Score)
    with pytest.raises(RewardError, match=f"prompt file:3: metadata.{message}"):
        raise bad if isinstance(bad, RewardError) else AssertionError(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost"}, "url of logprob_judge is 'localhost'"),
        ({"questions": "Is it {prompt}?"}, "questions of logprob_judge is .*give a list"),
        ({"questions": ["Is it red?"]}, "questions of logprob_judge is"),
        ({"answer": "digits"}, "answer of logprob_judge is 'digits'"),
        ({"lowest": 5, "highest": 5}, "lowest of logprob_judge is 5"),
        ({"combine": "median"}, "combine of logprob_judge is 'median'; set it to one of mean, geometric, lowest"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogprobJudgeReward(**{"url": "http://localhost:1/v1", "model": "m", **options})
