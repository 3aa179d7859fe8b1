"""POST of JSON to a server that may be busy: tried again, a bounded number of times, and never redirected.

    body ─► POST ─► 200: the answer
              │ timeout, no connection, 408, 409, 425, 429, 5xx: again, up to `retries` times, waiting twice as long
              └ anything else: RewardError at once

The key goes nowhere but into the request's header: not into errors, not to another server.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Final

from configs.errors import ConfigError, RewardError

MAX_BODY_READ: Final = 10_000
MAX_BODY_SHOWN: Final = 200
"""Bytes that are read of an error's body, and characters that are shown of it."""
_RETRIED_STATUSES: Final = (408, 409, 425, 429)


class _TryAgainError(Exception):
    """The server may answer another time. The message says what happened."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        """That the server asks for."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class JsonClient:
    """Of one address; may be used from several threads."""

    url: str
    timeout_s: float
    """Of one try."""
    retries: int
    backoff_s: float
    """Before the first retry; doubles with each."""
    api_key: str | None = field(default=None, repr=False)
    patience_s: float = 0.0
    """The longest wait that a server may ask for with Retry-After; a longer one is waited for that long."""

    def post(self, body: Any) -> Any:
        """The answer to a JSON body, parsed. Raises RewardError."""
        data = json.dumps(body).encode()
        reason, asked_s = "", 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(max(self.backoff_s * 2 ** (attempt - 1), min(asked_s, self.patience_s)))
            try:
                answer = self._try(data)
                break
            except _TryAgainError as error:
                reason, asked_s = str(error), error.wait_s
        else:
            raise RewardError(f"{self.url} gave no answer in {self.retries + 1} tries, the last: {reason}")
        try:
            return json.loads(answer)
        except ValueError as error:
            raise RewardError(f"{self.url} did not answer in JSON: {self.show(answer)}") from error

    def show(self, answer: Any) -> str:
        """The start of an answer, for messages, without the key: some servers quote the one that they refuse."""
        text = answer.decode(errors="replace") if isinstance(answer, bytes) else json.dumps(answer)
        return (text.replace(self.api_key, "***") if self.api_key else text)[:MAX_BODY_SHOWN]

    def _try(self, data: bytes) -> bytes:
        request = urllib.request.Request(self.url, data=data, headers={"Content-Type": "application/json"})
        if self.api_key:
            request.add_unredirected_header("Authorization", f"Bearer {self.api_key}")
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout_s) as response:
                read: bytes = response.read()
                return read
        except urllib.error.HTTPError as error:
            with error:
                reason = f"status {error.code}: {self.show(error.read(MAX_BODY_READ))}"
            if error.code in _RETRIED_STATUSES or error.code >= 500:
                raise _TryAgainError(reason, _retry_after(error.headers.get("Retry-After"))) from None
            raise RewardError(f"{self.url} refused the request with {reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(f"{type(error).__name__}: {error}") from error


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header; 0 where there is none, or a date."""
    return float(value) if value and value.strip().isdecimal() else 0.0


def check_url(url: str, option: str, example: str) -> None:
    """Raise ConfigError, naming the option, for an address that is none."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{option} is '{url}'; give it like {example}")


def read_api_key(variable: str | None, option: str) -> str | None:
    """Value of an environment variable, None for none. Raises ConfigError where it is not set, naming the option."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(
            f"{option} is '{variable}', and that environment variable is not set here; export it before the start, or, "
            "for the replicas of a reward, set it in rewards[].runtime_env"
        )
    return key
