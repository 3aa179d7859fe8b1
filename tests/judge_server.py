"""A small server on this machine that speaks as an OpenAI-compatible one, for the rewards that ask a judge."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from rollout.records import UInt8Array

Answer = tuple[int, str | dict[str, Any]] | tuple[int, str | dict[str, Any], dict[str, str]]
"""Status, body, and further headers."""


def reply(text: str | None) -> Answer:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


class JudgeServer:
    """Speaks as an OpenAI-compatible server; `answer` decides what it says to a request's body."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = lambda body: reply("Score: 5")
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        """(path, headers, body), in order of arrival."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, dict(self.headers), body))
                status, content, *headers = outer.answer(body)
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"{outer.url}/elsewhere")
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # a client that has given up
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)


def likeliest(logprobs: Mapping[str, float]) -> Answer:
    """A reply of one token, with these tokens and their log-probabilities as the likeliest ones."""
    listed = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in logprobs.items()]
    content = [{"token": listed[0]["token"], "logprob": listed[0]["logprob"], "top_logprobs": listed}] if listed else []
    message = {"role": "assistant", "content": next(iter(logprobs), "")}
    return 200, {"choices": [{"message": message, "logprobs": {"content": content}}]}


def question_of(body: dict[str, Any]) -> str:
    """The text of a request."""
    text: str = body["messages"][0]["content"][-1]["text"]
    return text


def picture_of(body: dict[str, Any], image_format: str = "png") -> UInt8Array:
    """The picture of a request."""
    header, _, data = body["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    assert header == f"data:image/{image_format};base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
