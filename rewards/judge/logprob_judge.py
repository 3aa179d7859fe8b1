"""A judge by its log-probabilities: one token a question, graded, and never a reply that cannot be read.

    question ─┐                          ┌ yes:     P(yes) / (P(yes) + P(no))
    picture ──┴─► server ─► first token's ─┤
                           likeliest 20  └ number:  the expectation over the numbers `lowest` to `highest`, as 0..1

With several questions the score is combined from their answers. They are the same for all prompts, or a prompt brings
its own: a list `questions` in its metadata, which `python -m rewards.ask` writes (as TIFA does, arXiv 2303.11897).
Servers must give `logprobs` with `top_logprobs`, as vLLM, SGLang and OpenAI's do. A model that thinks first has to be
told not to: `extra_body: {chat_template_kwargs: {enable_thinking: false}}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from configs.errors import ConfigError, RewardError
from rewards.clients import ChatClient, check_url, read_api_key
from rollout.records import Prompt, Score, UInt8Array

QUESTION = 'Does this picture show "{prompt}"? Answer with one word, yes or no.'
YES = "yes"
NO = "no"
METADATA_KEY = "questions"
TOP_LOGPROBS = 20
"""What OpenAI's and vLLM's servers give at most."""
MIN_SHARE = 0.01
"""Probability that the answers known have together, below which the judge answers something else."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a picture."""

    text: str
    answer: str = YES
    """The answer that counts as right: yes or no."""


class LogprobJudgeReward:
    """Probability of the right answer, or the expected number, of each picture, 0 to 1.

    url: of the server, up to and with /v1; model: its name there. api_key_env: environment variable that holds the
    key. questions: asked of every picture, with {prompt} in them, unless its prompt brings its own; null for whether
    the picture shows the prompt, and an empty list for prompts that bring their own only. answer: `yes`, or `number`
    for an expectation between lowest and highest. combine: `mean`, `geometric` or `lowest` of the answers to several
    questions. extra_body: further fields of each request. image_format: `png`, or `jpeg` (quality 95). num_parallel:
    requests at once. timeout_s: of a request; retries, backoff_s: when it gets no answer.
    Raises ConfigError for a wrong option.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key_env: str | None = None,
        questions: Sequence[str] | None = None,
        answer: str = YES,
        lowest: int = 0,
        highest: int = 9,
        combine: str = "mean",
        extra_body: Mapping[str, Any] | None = None,
        image_format: str = "png",
        num_parallel: int = 32,
        timeout_s: float = 30.0,
        retries: int = 2,
        backoff_s: float = 1.0,
    ) -> None:
        questions = (QUESTION,) if questions is None else questions
        _check(url, questions, answer, lowest, highest, combine)
        self._questions, self._combine = tuple(questions), COMBINATIONS[combine]
        self._numbers = range(lowest, highest + 1) if answer == "number" else None
        settings = {"temperature": 0.0, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        self._client = ChatClient(
            url=url,
            model=model,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            settings={**settings, **(extra_body or {})},
            api_key=read_api_key(api_key_env, "rewards[].options.api_key_env of logprob_judge"),
            image_format=image_format,
        )
        self._threads = ThreadPoolExecutor(max_workers=num_parallel, thread_name_prefix="judge")

    @staticmethod
    def applies_to(prompt: Prompt, options: Mapping[str, Any]) -> bool:
        """Whether there is anything to ask."""
        return bool(prompt.metadata.get(METADATA_KEY)) or options.get("questions") is None or bool(options["questions"])

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score | RewardError]:
        """The combined answer for each picture; pictures uint8 [B, height, width, 3]. Parts: question -> answer.

        A RewardError for a picture with malformed questions, or of which the server does not answer one.
        """
        # All questions of all pictures are out at once, and not those of one picture after the other.
        asked = [self._ask_all(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        return [_gather(answers, self._combine) for answers in asked]

    def close(self) -> None:
        """End the threads; a request that is out is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask_all(self, picture: UInt8Array, prompt: Prompt) -> Mapping[str, Callable[[], float]] | RewardError:
        try:
            questions = questions_of(prompt, self._questions)
        except ValueError as error:
            return RewardError(f"reward 'logprob_judge': prompt {prompt.prompt_id}: metadata.{error}")
        return {question.text: self._threads.submit(self._answer, question, picture).result for question in questions}

    def _answer(self, question: Question, picture: UInt8Array) -> float:
        alternatives = self._client.first_token(question.text, picture)
        if self._numbers is not None:
            return expected_number(alternatives, self._numbers)
        return share_of(alternatives, question.answer)


def questions_of(prompt: Prompt, default: Sequence[str]) -> list[Question]:
    """The prompt's own questions, or else the default ones, with the prompt put in.

    Raises ValueError for malformed ones: they are texts, or objects of a `question` and its `answer`, yes or no.
    """
    stored = prompt.metadata.get(METADATA_KEY)
    if not stored:
        return [Question(text.replace("{prompt}", prompt.text)) for text in default]
    if not isinstance(stored, list):
        raise ValueError(f"{METADATA_KEY} is {type(stored).__name__}; give a list")
    questions = []
    for i, item in enumerate(stored):
        fields = item if isinstance(item, Mapping) else {"question": item}
        text, answer = fields.get("question"), fields.get("answer", YES)
        if not isinstance(text, str) or not text.strip() or answer not in (YES, NO):
            raise ValueError(f"{METADATA_KEY}[{i}]: a text, or a question with answer yes or no, is expected: {item!r}")
        questions.append(Question(text, answer))
    return questions


def share_of(alternatives: Mapping[str, float], answer: str) -> float:
    """P(answer) / (P(yes) + P(no)), of the likeliest tokens with their log-probabilities in nats.

    "Yes", " yes" and "YES" are one answer. Raises RewardError when neither is among them.
    """
    found = dict.fromkeys((YES, NO), 0.0)
    for token, logprob in alternatives.items():
        word = token.strip().casefold()
        if word in found:
            found[word] += math.exp(logprob)
    return found[answer] / _checked_sum(found.values(), alternatives, "yes or no")


def expected_number(alternatives: Mapping[str, float], numbers: range) -> float:
    """The expectation over tokens that are one of the numbers, scaled to 0..1. Raises RewardError when none is."""
    found = dict.fromkeys(numbers, 0.0)
    for token, logprob in alternatives.items():
        if token.strip().isdecimal() and int(token) in found:
            found[int(token)] += math.exp(logprob)
    total = _checked_sum(found.values(), alternatives, f"a number from {numbers[0]} to {numbers[-1]}")
    mean = sum(number * share for number, share in found.items()) / total
    return (mean - numbers[0]) / (numbers[-1] - numbers[0])


def _checked_sum(shares: Any, alternatives: Mapping[str, float], wanted: str) -> float:
    total: float = math.fsum(shares)
    if total < MIN_SHARE:
        likeliest = max(alternatives, key=lambda token: alternatives[token], default="")
        raise RewardError(f"the judge does not answer with {wanted}; the likeliest first token is {likeliest!r}")
    return total


def _geometric(values: Sequence[float]) -> float:
    return math.prod(values) ** (1 / len(values))


COMBINATIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: math.fsum(values) / len(values),
    "geometric": _geometric,
    "lowest": min,
}


def _gather(
    answers: Mapping[str, Callable[[], float]] | RewardError, combine: Callable[[Sequence[float]], float]
) -> Score | RewardError:
    if isinstance(answers, RewardError):
        return answers
    if not answers:
        return Score(None)
    try:
        values = {question: result() for question, result in answers.items()}
    except RewardError as error:
        return error
    return Score(
        combine(list(values.values())), parts={question: round(value, 4) for question, value in values.items()}
    )


def _check(url: str, questions: Any, answer: str, lowest: int, highest: int, combine: str) -> None:
    option, name = "rewards[].options", "logprob_judge"
    check_url(url, f"{option}.url of {name}", "http://localhost:8000/v1")
    if isinstance(questions, str) or not all(isinstance(text, str) and "{prompt}" in text for text in questions):
        raise ConfigError(
            f"{option}.questions of {name} is {questions!r}; give a list of texts with {{prompt}} in each"
        )
    if answer not in (YES, "number"):
        raise ConfigError(f"{option}.answer of {name} is '{answer}'; set it to yes or number")
    if not 0 <= lowest < highest:
        raise ConfigError(f"{option}.lowest of {name} is {lowest}; set it to 0 or more, and below highest, {highest}")
    if combine not in COMBINATIONS:
        raise ConfigError(f"{option}.combine of {name} is '{combine}'; set it to one of {', '.join(COMBINATIONS)}")
