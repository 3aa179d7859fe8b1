"""A server of rewards in the format of `rewards.remote.http_reward`, to test against and to begin one's own from.

It gives the mean brightness of each picture, 0 to 1: nothing of bicot is needed for it.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
from PIL import Image

Answer = tuple[int, Any]
"""Status, and a body that becomes JSON."""


def score_items(request: dict[str, Any]) -> Answer:
    """The answer to a request."""
    if request.get("version") != 1:
        return 400, {"detail": "only version 1 is known"}
    scores: list[Any] = []
    for item in request["items"]:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["image"]))).convert("RGB"))
        scores.append({"value": float(picture.mean()) / 255, "parts": {"prompt": item["prompt"]["prompt"]}})
    return 200, {"scores": scores}


class RewardServer:
    """Listens on a free port of this machine until it is closed; keeps what it was asked."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer] = score_items) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(request)
                outer.headers.append(dict(self.headers))
                status, body = outer.answer(request)
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/score"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)
