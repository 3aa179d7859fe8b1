"""The server of the page: a few GET requests, answered from files. Needs no Ray, and Redis only for runs of a `Mirror`.

/                           the page, with all sections
/sections?known=JSON        {name: {html, digest}} of the sections whose digest is another one by now
/samples?run=N&step=N       the pictures of one step
/metrics.jsonl?run=N        the run's file, for other tools

/api/health, /api/v1/query  what Ray's dashboard asks of a Grafana and a Prometheus before it shows its Metrics tab,
/d/...                      and the board that it embeds there: the page, where Ray's head was given our address
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from cluster.report.page import LIVE, Section, newest_strip, page, sample_page, sections_of
from cluster.report.view import RunView, read_runs
from cluster.watch.mirror import Mirror
from configs.errors import BicotError, ConfigError

REFRESH_MS: Final = 2000
KEPT_S: Final = 1.0
"""Sections are made at most once in this time, however many browsers ask."""
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
EMBEDDED: Final = "/d/"
HEALTH: Final[Mapping[str, Mapping[str, Any]]] = {
    "/api/health": {"database": "ok"},
    "/api/v1/query": {"status": "success", "data": {"resultType": "vector", "result": []}},
}


@dataclass(slots=True)
class Watched:
    """The runs of a page, read again as they go on."""

    paths: Sequence[Path]
    mirrors: Sequence[Mirror] = ()
    """Of the paths that are no run directories, but come from Redis."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _made_s: float = field(default=-1e9, init=False)
    _sections: list[Section] = field(default_factory=list, init=False)
    _views: list[RunView] = field(default_factory=list, init=False)

    def sections(self) -> list[Section]:
        """As the runs are now. Raises ConfigError when a run's directory has gone, RegistryError when Redis has."""
        with self._lock:
            if time.monotonic() - self._made_s > KEPT_S:
                for mirror in self.mirrors:
                    mirror.refresh()
                self._views = read_runs(self.paths)
                strips = [newest_strip(view) for view in self._views]
                self._sections = sections_of(self._views, strips, LIVE)
                self._made_s = time.monotonic()
            return self._sections

    def view(self, number: int) -> RunView:
        """One run, as it was read last."""
        self.sections()
        return self._views[number]

    def page(self) -> str:
        """The whole page."""
        parts = self.sections()
        title = " · ".join(view.name for view in self._views)
        sources = ["Redis"] * bool(self.mirrors) + ["the run directory"] * (len(self.paths) > len(self.mirrors))
        footer = f"Read from {' and '.join(sources)}; nothing is changed there."
        return page(parts, f"bicot: {title}", footer, REFRESH_MS)

    def news(self, known: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Sections whose digest is not the known one."""
        return {
            part.name: {"html": str(part.html), "digest": part.digest}
            for part in self.sections()
            if known.get(part.name) != part.digest
        }


class PageServer(ThreadingHTTPServer):
    """Answers for some runs; `serve_forever` begins."""

    daemon_threads = True

    def __init__(self, watched: Watched, host: str, port: int) -> None:
        self.watched = watched
        self.is_for_this_machine = host in LOOPBACK
        super().__init__((host, port), _Handler)


def serve(watched: Watched, host: str, port: int) -> PageServer:
    """A server that is bound. port 0 takes a free one. Raises ConfigError."""
    try:
        return PageServer(watched, host, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}; name others") from error


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        # A page of another site may send a browser here under a name of its own (DNS rebinding).
        if self.server.is_for_this_machine and _host_of(self.headers.get("Host", "")) not in LOOPBACK:
            return self._answer(HTTPStatus.FORBIDDEN, "text/plain", "this server answers under its own name only")
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path.startswith(EMBEDDED):  # its addresses are relative, so it is shown where it lives
            return self._redirect("/")
        if url.path in HEALTH:
            return self._answer(HTTPStatus.OK, "application/json", json.dumps(HEALTH[url.path]))
        answers: dict[str, Callable[[Watched, dict[str, str]], tuple[str, str]]] = {
            "/": _page,
            "/sections": _news,
            "/samples": _samples,
            "/metrics.jsonl": _metrics,
        }
        if url.path not in answers:
            return self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is no such page")
        try:
            kind, text = answers[url.path](self.server.watched, query)
        except (LookupError, ValueError, AttributeError) as error:
            return self._answer(HTTPStatus.BAD_REQUEST, "text/plain", f"not understood: {type(error).__name__}")
        except (BicotError, OSError) as error:
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error))
        self._answer(HTTPStatus.OK, kind, text)

    def log_message(self, format: str, *args: Any) -> None:
        """A page asks every two seconds; that is no news."""

    def _redirect(self, path: str) -> None:
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(data)


def _page(watched: Watched, query: Mapping[str, str]) -> tuple[str, str]:
    return "text/html", watched.page()


def _news(watched: Watched, query: Mapping[str, str]) -> tuple[str, str]:
    known = json.loads(query.get("known", "{}"))
    return "application/json", json.dumps(watched.news(dict(known)))


def _samples(watched: Watched, query: Mapping[str, str]) -> tuple[str, str]:
    tree = watched.view(int(query["run"])).samples(int(query["step"]))
    if tree is None:
        raise LookupError("step")
    return "text/html", sample_page(tree)


def _metrics(watched: Watched, query: Mapping[str, str]) -> tuple[str, str]:
    path = watched.view(int(query.get("run", "0"))).directory.metrics_path
    return "application/x-ndjson", path.read_text(encoding="utf-8")


def _host_of(header: str) -> str:
    return (urlsplit(f"//{header}").hostname or "").lower()
