"""Any server as a reward: pictures, prompts and plans go out as JSON, scores come back.

    POST url   {"version": 1, "items": [{"image": base64 of a PNG, "prompt": {…}, "plan": text or null}, …]}
    200        {"scores": [0.5, null, {"value": 0.5, "parts": {…}}, {"error": "…"}, …]}, one an item, in order

`prompt` is the record of the prompt file: "prompt" (its text), and where it has them "task_type", "nouns",
"attr_nouns", "spatial_info", "numeracy_info", "metadata"; and its "prompt_id". null: the reward does not apply;
"error": this picture could not be scored. 4xx says that the request is wrong, 429 and 5xx that it may be sent again.
A server of 40 lines is in tests/reward_server.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from configs.errors import ConfigError, RewardError
from rewards.clients import JsonClient, check_url, read_api_key
from rewards.pictures import as_base64
from rollout.records import Prompt, Score, UInt8Array

VERSION: Final = 1


class HttpReward:
    """Scores that a server gives; the format is at the top of this file.

    url: the whole address; api_key_env: environment variable that holds a bearer token. pictures_per_request: at most;
    num_parallel: requests at once. timeout_s: of a request; retries, backoff_s: when it gets no answer. By default all
    tries of a batch of 32 have ended before the reward's own `timeout_s`: 3 tries of 30 s and 3 s of waiting, against
    120 s. is_random: the server may score the same picture differently another time.
    Raises ConfigError for a wrong option.
    """

    def __init__(
        self,
        device: str,
        url: str,
        api_key_env: str | None = None,
        pictures_per_request: int = 8,
        num_parallel: int = 4,
        timeout_s: float = 30.0,
        retries: int = 2,
        backoff_s: float = 1.0,
        is_random: bool = False,
    ) -> None:
        check_url(url, "rewards[].options.url of http", "http://localhost:8000/score")
        for name, value in (("pictures_per_request", pictures_per_request), ("num_parallel", num_parallel)):
            if value < 1:
                raise ConfigError(f"rewards[].options.{name} of http is {value}; set it to 1 or more")
        self.is_random = is_random
        self._size = pictures_per_request
        api_key = read_api_key(api_key_env, "rewards[].options.api_key_env of http")
        self._client = JsonClient(url, timeout_s, retries, backoff_s, api_key)
        self._threads = ThreadPoolExecutor(max_workers=num_parallel, thread_name_prefix="http-reward")

    def score(
        self, pictures: UInt8Array, prompts: Sequence[Prompt], plans: Sequence[str] | None = None
    ) -> list[Score | RewardError]:
        """The server's score of each picture; pictures uint8 [B, height, width, 3].

        A RewardError for each picture of a request that got no answer, or none of the right form.
        """
        shown: Sequence[str | None] = [None] * len(prompts) if plans is None else plans
        items = list(zip(pictures, prompts, shown, strict=True))
        requests = [items[start : start + self._size] for start in range(0, len(items), self._size)]
        return [answer for answers in self._threads.map(self._ask, requests) for answer in answers]

    def close(self) -> None:
        """End the threads; a request that is out is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, items: Sequence[tuple[UInt8Array, Prompt, str | None]]) -> list[Score | RewardError]:
        body = {"version": VERSION, "items": [_as_item(*item) for item in items]}
        try:
            answered = self._client.post(body)
            scores = answered.get("scores") if isinstance(answered, Mapping) else None
            if not isinstance(scores, list) or len(scores) != len(items):
                raise RewardError(f"{self._client.url} must answer with scores: a list of {len(items)}, one an item")
        except RewardError as error:
            return [RewardError(str(error)) for _ in items]
        return [self._read(score) for score in scores]

    def _read(self, score: Any) -> Score | RewardError:
        parts: Mapping[str, Any] = {}
        if isinstance(score, Mapping):
            if "error" in score:
                return RewardError(f"{self._client.url}: {score['error']}")
            parts = score.get("parts") or {}
            score = score.get("value", "nothing")
        if score is None:
            return Score(None)
        if isinstance(score, bool) or not isinstance(score, int | float) or not isinstance(parts, Mapping):
            return RewardError(f"{self._client.url} gave {score!r} where a number, null, or an object should be")
        return Score(float(score), parts)


def _as_item(picture: UInt8Array, prompt: Prompt, plan: str | None) -> dict[str, Any]:
    record = {"prompt_id": prompt.prompt_id, **prompt.to_record()}
    return {"image": as_base64(picture, "png"), "prompt": record, "plan": plan}
