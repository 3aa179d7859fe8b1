"""Headless Chromium, driven by its own protocol: loads a page, asks it things, and keeps what it complains of."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
TIMEOUT_S = 60.0


class Browser:
    """One page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.complaints: list[str] = []
        """Exceptions, console errors, and what the page's policy has blocked."""
        self.requests: list[str] = []
        """Addresses that the page asked for, but for data: and the page's own."""
        self._contexts: dict[str, int] = {}
        """Where to ask the newest frame of an origin, such as http://127.0.0.1:8700."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            message = json.loads(self._connection.recv(timeout=max(0.1, deadline - time.monotonic())))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message)

    def _hear(self, message: Mapping[str, Any]) -> None:
        method, told = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"])[:400])
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(told["args"])[:400])
        elif method == "Runtime.executionContextCreated":
            self._contexts[told["context"]["origin"]] = told["context"]["id"]
        elif method == "Network.requestWillBeSent" and not told["request"]["url"].startswith("data:"):
            self.requests.append(told["request"]["url"])

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def is_online(self, online: bool) -> None:
        """Whether the page has a network from now on."""
        speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.call("Network.emulateNetworkConditions", offline=not online, **speed)

    def load(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, expression: str, origin: str | None = None) -> Any:
        """The value of a JavaScript expression, in the page itself or in the frame of an origin."""
        where = {} if origin is None else {"contextId": self._contexts[origin]}
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, **where)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str, origin: str | None = None) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not self._is_so(expression, origin):
            assert time.monotonic() < deadline, f"never became so: {expression}"
            time.sleep(0.1)

    def _is_so(self, expression: str, origin: str | None) -> bool:
        self.ask("0")  # hears of new frames
        return (origin is None or origin in self._contexts) and bool(self.ask(f"Boolean({expression})", origin))

    def screenshot(self, path: Path) -> None:
        """Of the whole page."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser of its own, which ends with the context. folder: for its profile."""
    assert CHROMIUM is not None
    profile = folder / "profile"
    command = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
        *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
        *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
    ]
    with (folder / "chromium.txt").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        with connect(_address(profile), max_size=None, open_timeout=TIMEOUT_S) as connection:
            yield Browser(connection)
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def _address(profile: Path) -> str:
    """Of the first page's socket, once the browser has written down its port."""
    import urllib.request

    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            port = (profile / "DevToolsActivePort").read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
        except (OSError, IndexError):
            pages = []
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise AssertionError(f"chromium did not start within {TIMEOUT_S:g} s")
