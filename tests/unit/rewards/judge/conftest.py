"""A judge's server for the tests beside this file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.judge_server import JudgeServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = JudgeServer()
    yield server
    server.close()
