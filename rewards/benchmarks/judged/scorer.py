"""A judge on any OpenAI-compatible server: the official messages in, the reply kept as it came.

    picture + record ─► messages ─► POST {url}/chat/completions ─► reply ─┬─► readable: the answer
                                        ▲                                 └─► not: again, up to MAX_TRIES in all
                                        └ no answer, 429 (Retry-After), 5xx: again, by the client

An answer is {"replies": [every reply, the last one counts], "model": as the server calls it, "date": UTC}.
"""

from __future__ import annotations

import base64
import datetime
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from PIL import Image

from configs.errors import RewardError
from rewards.benchmarks.pictures import open_picture
from rewards.benchmarks.protocol import Answer, Asked, Item, UnreadableError
from rewards.clients import JsonClient

MAX_TRIES = 3
"""Replies to one picture that may be unreadable; what the official scripts allow."""
MAX_FAILURES_IN_A_ROW = 20
"""Pictures without any answer, after which the judge is taken to be gone."""
RETRIES, BACKOFF_S, PATIENCE_S = 5, 2.0, 300.0
TIMEOUT_S, NUM_PARALLEL = 300.0, 10


@dataclass(frozen=True, slots=True)
class JudgeProtocol:
    """How one benchmark asks its judge."""

    messages: Callable[[Item, str], list[dict[str, Any]]]
    """Of an item and its picture in base64."""
    settings: Mapping[str, Any]
    """Further fields of each request: temperature, max_tokens."""
    as_jpeg: bool
    """The picture is encoded as a JPEG of Pillow's default quality; else its file is sent as it is."""
    read: Callable[[str], Any]
    """Raises RewardError for a reply that cannot be read."""


class ServerScorer(ABC):
    """Asks a model on a server about several pictures at once."""

    def __init__(self, client: JsonClient, model: str, num_parallel: int, settings: Mapping[str, Any]) -> None:
        """settings: further fields of each request: temperature, max_tokens."""
        self._client, self._model, self._settings = client, model, settings
        self._threads = ThreadPoolExecutor(max_workers=num_parallel, thread_name_prefix="judge")
        self.seen: set[str] = set()
        """Names of the model, as the server gave them."""

    @abstractmethod
    def ask(self, one: Asked) -> Answer:
        """What the model says of one file. Raises RewardError."""

    def post(self, messages: list[dict[str, Any]], **settings: Any) -> tuple[str, str]:
        """A reply, and the name of the model that gave it. Raises RewardError."""
        body = {"model": self._model, "messages": messages, **self._settings, **settings}
        reply, model = self._read(self._client.post(body))
        self.seen.add(model)
        return reply, model

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """Replies, as they come. Raises RewardError when the judge answers nothing any more."""
        running: dict[Future[Answer | RewardError], Asked] = {
            self._threads.submit(self._judge, one): one for one in asked
        }
        num_failed = 0
        try:
            for future in as_completed(running):
                answer = future.result()
                yield running[future], answer
                is_silent = isinstance(answer, RewardError) and not isinstance(answer, UnreadableError)
                num_failed = num_failed + 1 if is_silent else 0
                if num_failed == MAX_FAILURES_IN_A_ROW:
                    raise RewardError(
                        f"the judge failed {num_failed} pictures in a row, the last: {answer}; what it has judged is "
                        "kept, and the same command goes on"
                    )
        finally:
            for future in running:
                future.cancel()

    def _judge(self, one: Asked) -> Answer | RewardError:
        try:
            return self.ask(one)
        except RewardError as error:
            return error

    def _read(self, answer: Any) -> tuple[str, str]:
        try:
            text = answer["choices"][0]["message"]["content"]
        except (LookupError, TypeError) as error:
            shown = self._client.show(answer)
            raise RewardError(f"the judge did not answer as an OpenAI-compatible server does: {shown}") from error
        return text if isinstance(text, str) else "", str(answer.get("model", ""))

    def about(self) -> Mapping[str, Any]:
        """The judge as it was asked for, and as the server called it."""
        return {
            "judge": self._model,
            "settings": dict(self._settings),
            "seen_judges": sorted(self.seen),
        }

    def close(self) -> None:
        """End the threads; a request that is out is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class JudgeScorer(ServerScorer):
    """Asks for one reply to a picture, again where it cannot be read."""

    def __init__(self, client: JsonClient, model: str, protocol: JudgeProtocol, num_parallel: int) -> None:
        super().__init__(client, model, num_parallel, protocol.settings)
        self._protocol = protocol

    def ask(self, one: Asked) -> Answer:
        """{"replies", "model", "date"}. Raises UnreadableError after `MAX_TRIES` replies."""
        messages = self._protocol.messages(one.item, self._encode(one))
        replies: list[str] = []
        answer: dict[str, Any] = {}
        for _ in range(MAX_TRIES):
            reply, model = self.post(messages)
            replies.append(reply)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            answer = {"replies": list(replies), "model": model, "date": now}
            try:
                self._protocol.read(reply)
            except RewardError as error:
                reason = error
            else:
                return answer
        raise UnreadableError(f"{MAX_TRIES} replies could not be read, the last: {reason}", answer)

    def _encode(self, one: Asked) -> str:
        if not self._protocol.as_jpeg:
            return base64.b64encode(one.path.read_bytes()).decode()
        picture = open_picture(one)
        if isinstance(picture, RewardError):
            raise picture
        with io.BytesIO() as file:
            Image.fromarray(picture).save(file, "JPEG")
            return base64.b64encode(file.getvalue()).decode()


def last_reply(answer: Answer) -> str:
    """The reply that counts. Raises RewardError for another kind of answer."""
    replies = answer.get("replies")
    if not isinstance(replies, list) or not replies or not isinstance(replies[-1], str):
        raise RewardError("no reply of a judge")
    return replies[-1]
