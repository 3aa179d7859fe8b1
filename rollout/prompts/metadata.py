"""Plain JSON out of what a prompt file's reader gives: what a prompt carries for its rewards."""

from __future__ import annotations

import json
from typing import Any

MAX_CHARACTERS = 1_000_000
"""Of one field's metadata as text. It travels with every group: a whole picture in it is a mistake."""


class NotJson(ValueError):
    """A value that JSON cannot hold, or too much of it; the message says what is wrong."""


def as_json(value: Any) -> Any:
    """The value as JSON gives it back: lists for tuples, text for keys. Raises NotJson."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise NotJson(f"JSON cannot hold it: {error}") from None
    if len(text) > MAX_CHARACTERS:
        raise NotJson(f"{len(text):,} characters of JSON; at most {MAX_CHARACTERS:,} are carried to the rewards")
    return json.loads(text)
