"""A client of any OpenAI-compatible chat server: one question and at most one picture in, the reply's text out, or
the likeliest first tokens with their log-probabilities.

    question + picture ─► POST {url}/chat/completions, as json_client.py does ─► first choice ─► reply
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from configs.errors import ConfigError, RewardError
from rewards.clients.json_client import JsonClient
from rewards.pictures import as_base64
from rollout.records import UInt8Array

IMAGE_FORMATS: Final[Mapping[str, Mapping[str, Any]]] = {"png": {}, "jpeg": {"quality": 95, "subsampling": 0}}
"""How a picture is sent: png is exact, jpeg a tenth of the CPU time and of the bytes of a noisy one."""


class ChatClient:
    """Asks one model on one server; may be used from several threads."""

    def __init__(
        self,
        url: str,
        model: str,
        timeout_s: float,
        retries: int,
        backoff_s: float,
        settings: Mapping[str, Any],
        api_key: str | None = None,
        image_format: str = "png",
    ) -> None:
        """url: with the version, without the method: http://localhost:8000/v1. settings: further fields of each
        request, such as temperature and max_tokens. image_format: one of IMAGE_FORMATS, else ConfigError. The others
        are those of JsonClient.
        """
        if image_format not in IMAGE_FORMATS:
            raise ConfigError(
                f"rewards[].options.image_format is '{image_format}'; set it to {' or '.join(IMAGE_FORMATS)}"
            )
        self.url, self.model = url, model
        self._settings, self._image_format = settings, image_format
        self._client = JsonClient(f"{url.rstrip('/')}/chat/completions", timeout_s, retries, backoff_s, api_key)

    def ask(self, question: str, picture: UInt8Array | None) -> str:
        """The reply to a question about a picture, uint8 [height, width, 3], or without one. Raises RewardError."""
        text = self._first_choice(question, picture)["message"]["content"]
        if not isinstance(text, str):
            raise RewardError(f"{self.url} answered without a text")
        return text

    def first_token(self, question: str, picture: UInt8Array) -> dict[str, float]:
        """The likeliest first tokens of the reply with their log-probabilities in nats. Raises RewardError.

        The settings must ask for them.
        """
        choice = self._first_choice(question, picture)
        try:
            listed = choice["logprobs"]["content"][0]["top_logprobs"]
            alternatives: dict[str, float] = {}
            for item in listed:  # two tokens may read the same
                token, share = str(item["token"]), math.exp(float(item["logprob"]))
                alternatives[token] = alternatives.get(token, 0.0) + share
            return {token: math.log(share) if share else -math.inf for token, share in alternatives.items()}
        except (LookupError, TypeError, ValueError) as error:
            raise RewardError(
                f"{self.url} gives no log-probabilities of {self.model}; it must support logprobs and top_logprobs"
            ) from error

    def _first_choice(self, question: str, picture: UInt8Array | None) -> dict[str, Any]:
        """The first choice of the server's answer; it has a message, and that has a content."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if picture is not None:
            data = as_base64(picture, self._image_format, **IMAGE_FORMATS[self._image_format])
            url = f"data:image/{self._image_format};base64,{data}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **self._settings}
        answer = self._client.post(body)
        try:
            choice = answer["choices"][0]
            choice["message"]["content"]
        except (LookupError, TypeError) as error:
            shown = self._client.show(answer)
            raise RewardError(f"{self.url} did not answer as an OpenAI-compatible server does: {shown}") from error
        return dict(choice)
