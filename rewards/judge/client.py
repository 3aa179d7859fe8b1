"""A client of any OpenAI-compatible chat server: one question and at most one picture in, the reply's text out, or
the likeliest first tokens with their log-probabilities.

    question + picture ─► POST {url}/chat/completions ─► reply
                             │ timeout, no connection, 429, 5xx: again, up to `retries` times, waiting twice as long
                             └ anything else: RewardError at once

The API key comes from an environment variable, and goes nowhere but into the request's header: not into errors, not
into a redirect, which is refused.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.errors import ConfigError, RewardError
from rollout.records import UInt8Array

MAX_BODY_READ = 10_000
MAX_BODY_SHOWN = 200
"""Bytes that are read of an error's body, and characters that are shown of it."""
IMAGE_FORMATS: Mapping[str, Mapping[str, Any]] = {"png": {}, "jpeg": {"quality": 95, "subsampling": 0}}
"""How a picture is sent: png is exact, jpeg a tenth of the CPU time and of the bytes of a noisy one."""
_RETRIED_STATUSES = (408, 409, 425, 429)


class _TryAgainError(Exception):
    """The server may answer another time. The message says what happened."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class ChatClient:
    """Asks one model on one server; may be used from several threads."""

    url: str
    """With the version, without the method: http://localhost:8000/v1."""
    model: str
    timeout_s: float
    """Of one request."""
    retries: int
    backoff_s: float
    """Before the first retry; doubles with each."""
    settings: Mapping[str, Any]
    """Further fields of each request: temperature, max_tokens."""
    api_key: str | None = field(default=None, repr=False)
    image_format: str = "png"
    """One of IMAGE_FORMATS."""

    def __post_init__(self) -> None:
        if self.image_format not in IMAGE_FORMATS:
            raise ConfigError(
                f"rewards[].options.image_format is '{self.image_format}'; set it to {' or '.join(IMAGE_FORMATS)}"
            )

    def ask(self, question: str, picture: UInt8Array | None) -> str:
        """The reply to a question about a picture, uint8 [height, width, 3], or without one. Raises RewardError."""
        choice = self._choose(question, picture)
        text = choice["message"].get("content") if isinstance(choice.get("message"), dict) else None
        if not isinstance(text, str):
            raise RewardError(f"{self.url} answered without a text")
        return text

    def first_token(self, question: str, picture: UInt8Array) -> dict[str, float]:
        """The likeliest first tokens of the reply with their log-probabilities in nats. Raises RewardError.

        The settings must ask for them.
        """
        choice = self._choose(question, picture)
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

    def _choose(self, question: str, picture: UInt8Array | None) -> dict[str, Any]:
        """The first choice of the server's answer."""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff_s * 2 ** (attempt - 1))
            try:
                return self._request(question, picture)
            except _TryAgainError as error:
                reason = str(error)
        raise RewardError(f"{self.url} gave no answer in {self.retries + 1} tries, the last: {reason}")

    def _request(self, question: str, picture: UInt8Array | None) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if picture is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": _as_data_url(picture, self.image_format)}})
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **self.settings}
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if self.api_key:
            # Unredirected headers do not follow a redirect, even if one were followed.
            request.add_unredirected_header("Authorization", f"Bearer {self.api_key}")
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout_s) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            with error:
                reason = f"status {error.code}: {self._show(error.read(MAX_BODY_READ))}"
            if error.code in _RETRIED_STATUSES or error.code >= 500:
                raise _TryAgainError(reason) from None
            raise RewardError(f"{self.url} refused the request with {reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(f"{type(error).__name__}: {error}") from error
        return self._first_choice(answer)

    def _first_choice(self, answer: bytes) -> dict[str, Any]:
        try:
            choice = json.loads(answer)["choices"][0]
            choice["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            shown = self._show(answer)
            raise RewardError(f"{self.url} did not answer as an OpenAI-compatible server does: {shown}") from error
        return dict(choice)

    def _show(self, body: bytes) -> str:
        """The start of a body, without the key: some servers quote the one that they refuse."""
        text = body.decode(errors="replace")
        return (text.replace(self.api_key, "***") if self.api_key else text)[:MAX_BODY_SHOWN]


def read_api_key(variable: str | None, reward: str) -> str | None:
    """The value of an environment variable; null for none. Raises ConfigError when it is not set."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(
            f"rewards[].options.api_key_env of {reward} is '{variable}', and that variable is not set where the reward "
            "runs; export it before the run, or pass it in the reward's runtime environment"
        )
    return key


def _as_data_url(picture: UInt8Array, image_format: str) -> str:
    from PIL import Image

    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, format=image_format, **IMAGE_FORMATS[image_format])
        return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode()}"
