"""A vision-language model as a judge, on any OpenAI-compatible server (vLLM, SGLang, a hosted one).

    prompt ─► question ─┐
    picture ────────────┴─► server ─► reply ─► `pattern` finds the number ─► the score

A reply without a number in its range is an error of that picture, not a score of 0. A judge that is asked for one word
and read by its probabilities, rewards/judge/logprob_judge.py, cannot fail so, and is faster.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from configs.errors import ConfigError, RewardError
from rewards.clients import ChatClient, check_url, read_api_key
from rollout.records import Prompt, Score, UInt8Array

QUESTION = (
    'A model was asked to draw: "{prompt}". Rate from 0 to 10 how well the picture shows everything that was asked '
    "for: the objects, their number, colours and other attributes, and where they are. 0: nothing of it; 10: all of "
    "it. Reason in one or two sentences, then end with a line 'Score: N'."
)
PATTERN = r"Score:\W*(\d+(?:\.\d+)?)"
MAX_REPLY_SHOWN = 300


class VlmJudgeReward:
    """The number in the judge's reply, `lowest` to `highest`, scaled to 0..1 unless `rescale` is false.

    url: of the server, up to and with /v1; model: its name there. api_key_env: environment variable that holds the
    key. question: with {prompt} in it. pattern: regular expression whose first group is the number; its last match
    counts. extra_body: further fields of each request, such as `chat_template_kwargs: {enable_thinking: false}` for a
    model that would think its tokens away. image_format: `png`, or `jpeg` (quality 95). num_parallel: requests at
    once. timeout_s: of a request; retries, backoff_s: when it gets no answer.
    By default all requests of a batch go out at once and have ended before the reward's own `timeout_s`: 3 tries of
    30 s and 3 s of waiting, against 120 s. Keep it so, or a slow server looks like a stuck replica.
    Raises ConfigError for a wrong option.
    """

    name = "vlm_judge"

    def __init__(
        self,
        device: str,
        url: str,
        model: str,
        api_key_env: str | None = None,
        question: str = QUESTION,
        pattern: str = PATTERN,
        lowest: float = 0.0,
        highest: float = 10.0,
        rescale: bool = True,
        temperature: float = 0.0,
        max_tokens: int = 512,
        extra_body: Mapping[str, Any] | None = None,
        image_format: str = "png",
        num_parallel: int = 32,
        timeout_s: float = 30.0,
        retries: int = 2,
        backoff_s: float = 1.0,
    ) -> None:
        _check(self.name, url, question, pattern, lowest, highest)
        self._question, self._pattern = question, re.compile(pattern, re.IGNORECASE)
        self._lowest, self._highest, self._rescale = lowest, highest, rescale
        self.is_random = temperature > 0
        self._client = ChatClient(
            url=url,
            model=model,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            settings={"temperature": temperature, "max_tokens": max_tokens, **(extra_body or {})},
            api_key=read_api_key(api_key_env, f"rewards[].options.api_key_env of {self.name}"),
            image_format=image_format,
        )
        self._threads = ThreadPoolExecutor(max_workers=num_parallel, thread_name_prefix="judge")

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score | RewardError]:
        """The judge's number for each picture; pictures uint8 [B, height, width, 3]. Parts: its reply.

        A RewardError for a picture to which the server does not answer, or with no number in range.
        """
        questions = [self._question.replace("{prompt}", prompt.text) for prompt in prompts]
        return list(self._threads.map(self._judge, questions, pictures))

    def close(self) -> None:
        """End the threads; a request that is out is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _judge(self, question: str, picture: UInt8Array) -> Score | RewardError:
        try:
            reply = self._client.ask(question, picture)
            return self._read(reply)
        except RewardError as error:
            return error

    def _read(self, reply: str) -> Score:
        number = find_number(self._pattern, reply, self._lowest, self._highest)
        value = (number - self._lowest) / (self._highest - self._lowest) if self._rescale else number
        return Score(value, parts={"reply": reply})


def find_number(pattern: re.Pattern[str], reply: str, lowest: float, highest: float) -> float:
    """The number in the first group of the pattern's last match. Raises RewardError when there is none in range."""
    found = list(pattern.finditer(reply))
    shown = reply if len(reply) <= MAX_REPLY_SHOWN else f"{reply[:MAX_REPLY_SHOWN]}..."
    if not found:
        raise RewardError(f"the judge's reply holds nothing like {pattern.pattern}: {shown}")
    try:
        number = float(found[-1][1])
    except ValueError:
        raise RewardError(f"the judge's reply holds '{found[-1][1]}' where a number should be: {shown}") from None
    if not lowest <= number <= highest:
        raise RewardError(f"the judge gave {number}, not {lowest} to {highest}: {shown}")
    return number


def _check(name: str, url: str, question: str, pattern: str, lowest: float, highest: float) -> None:
    option = "rewards[].options"
    check_url(url, f"{option}.url of {name}", "http://localhost:8000/v1")
    if "{prompt}" not in question:
        raise ConfigError(f"{option}.question of {name} is '{question}'; put {{prompt}} into it")
    try:
        num_groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"{option}.pattern of {name} is '{pattern}', no regular expression: {error}") from error
    if num_groups < 1:
        raise ConfigError(f"{option}.pattern of {name} is '{pattern}'; put the number into a group ( )")
    if not lowest < highest:
        raise ConfigError(f"{option}.lowest of {name} is {lowest}; set it below highest, which is {highest}")
