"""A vision-language model as a judge, on any OpenAI-compatible server (vLLM, SGLang, a hosted one).

    prompt ─► question ─┐
    picture ────────────┴─► server ─► reply ─► `pattern` finds the number ─► the score

vlm_judge asks what you tell it to; unified_reward asks UnifiedReward (Wang et al. 2025, arXiv 2503.05236) in the words
it was trained on, and reads its "Final Score" from 1 to 5. A reply without a number in its range is an error of that
picture's group, not a score of 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from configs.errors import ConfigError, RewardError
from rewards.judge.client import ChatClient, read_api_key
from rewards.pictures import check_pictures
from rollout.records import Prompt, Score, UInt8Array

QUESTION = (
    'A model was asked to draw: "{prompt}". Rate from 0 to 10 how well the picture shows everything that was asked '
    "for: the objects, their number, colours and other attributes, and where they are. 0: nothing of it; 10: all of "
    "it. Reason in one or two sentences, then end with a line 'Score: N'."
)
PATTERN = r"Score:\W*(\d+(?:\.\d+)?)"
UNIFIED_REWARD_QUESTION = (
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image "
    "based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided caption. Consider the accuracy "
    "of depicted objects, their relationships, and attributes as described in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail preservation, color "
    "accuracy, and overall aesthetic appeal.\n"
    "Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'.\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
UNIFIED_REWARD_PATTERN = r"Final Score:\W*(\d+(?:\.\d+)?)"
MAX_REPLY_SHOWN = 300


class VlmJudgeReward:
    """The number in the judge's reply, `lowest` to `highest`, scaled to 0..1 unless `rescale` is false.

    url: of the server, up to and with /v1; model: its name there. api_key_env: environment variable that holds the
    key. question: with {prompt} in it. pattern: regular expression whose first group is the number; its last match
    counts. num_parallel: requests at once. timeout_s: of a request; retries, backoff_s: when it gets no answer.
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
            settings={"temperature": temperature, "max_tokens": max_tokens},
            api_key=read_api_key(api_key_env, self.name),
        )
        self._threads = ThreadPoolExecutor(max_workers=num_parallel, thread_name_prefix="judge")

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score | RewardError]:
        """The judge's number for each picture; pictures uint8 [B, height, width, 3]. Parts: its reply.

        A RewardError for a picture to which the server does not answer, or with no number in range.
        """
        check_pictures(pictures, prompts)
        questions = [self._question.replace("{prompt}", prompt.text) for prompt in prompts]
        return list(self._threads.map(self._judge, questions, pictures))

    def close(self) -> None:
        """End the threads; a request that is out is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _judge(self, question: str, picture: UInt8Array) -> Score | RewardError:
        try:
            reply = self._client.ask(question, picture)
            return Score(self._value_of(reply), parts={"reply": reply})
        except RewardError as error:
            return error

    def _value_of(self, reply: str) -> float:
        found = list(self._pattern.finditer(reply))
        shown = reply if len(reply) <= MAX_REPLY_SHOWN else f"{reply[:MAX_REPLY_SHOWN]}..."
        if not found:
            raise RewardError(f"the judge's reply holds nothing like {self._pattern.pattern}: {shown}")
        try:
            number = float(found[-1][1])
        except ValueError:
            raise RewardError(f"the judge's reply holds '{found[-1][1]}' where a number should be: {shown}") from None
        if not self._lowest <= number <= self._highest:
            raise RewardError(f"the judge gave {number}, not {self._lowest} to {self._highest}: {shown}")
        return (number - self._lowest) / (self._highest - self._lowest) if self._rescale else number


class UnifiedReward(VlmJudgeReward):
    """UnifiedReward's "Final Score" of each picture, 1 to 5.

    Options are those of vlm_judge but for what the model was trained on: question, pattern and range.
    """

    name = "unified_reward"

    def __init__(
        self,
        device: str,
        url: str,
        model: str = "CodeGoat24/UnifiedReward-qwen-7b",
        api_key_env: str | None = None,
        num_parallel: int = 32,
        timeout_s: float = 30.0,
        retries: int = 2,
        backoff_s: float = 1.0,
    ) -> None:
        super().__init__(
            device,
            url,
            model,
            api_key_env,
            question=UNIFIED_REWARD_QUESTION,
            pattern=UNIFIED_REWARD_PATTERN,
            lowest=1.0,
            highest=5.0,
            rescale=False,
            num_parallel=num_parallel,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
        )


def _check(name: str, url: str, question: str, pattern: str, lowest: float, highest: float) -> None:
    option = "rewards[].options"
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{option}.url of {name} is '{url}'; give it like http://localhost:8000/v1")
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
