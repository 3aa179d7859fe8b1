"""Bounded waits."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
    """Look a few times a second. Raises AssertionError with `otherwise` when the time is over."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, otherwise
        time.sleep(0.1)
