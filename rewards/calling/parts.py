"""The reasons of a score as plain values of bounded size: they cross processes, and lie in files and in Redis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_ITEMS = 1000
"""Numbers, texts and the like in one part: of boxes, some 250."""
MAX_TEXT_CHARACTERS = 10_000
MAX_DEPTH = 8


class _TooLargeError(Exception):
    pass


def plain_parts(parts: Mapping[Any, Any]) -> dict[str, Any]:
    """The parts as numbers, texts, truth values, None, lists and mappings of them.

    Arrays and tensors become lists. What is none of these is replaced by its type's name in angle brackets, and a
    part of more than MAX_ITEMS items by a remark: a reason is for people, and no reason to lose a score.
    """
    plain: dict[str, Any] = {}
    for key, value in list(parts.items())[:MAX_ITEMS]:
        try:
            plain[str(key)] = _plain(value, [MAX_ITEMS], MAX_DEPTH)
        except _TooLargeError:
            plain[str(key)] = f"<{type(value).__name__} of more than {MAX_ITEMS} items, left out>"
        except Exception as error:  # noqa: BLE001 - a user's object may raise whatever it likes when it is looked at
            plain[str(key)] = f"<{type(value).__name__}, not readable: {type(error).__name__}>"
    return plain


def _plain(value: Any, left: list[int], depth: int) -> Any:
    """`left`: items that may still come, as one number that all calls count down."""
    left[0] -= 1
    if left[0] < 0:
        raise _TooLargeError
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT_CHARACTERS else f"{value[:MAX_TEXT_CHARACTERS]}..."
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if hasattr(value, "tolist") and hasattr(value, "shape"):  # of NumPy or torch
        if math.prod(value.shape) > left[0]:
            raise _TooLargeError
        return _plain(value.tolist(), left, depth)
    if depth > 0 and isinstance(value, Mapping):
        if len(value) > left[0]:
            raise _TooLargeError
        return {str(key): _plain(item, left, depth - 1) for key, item in value.items()}
    if depth > 0 and isinstance(value, list | tuple | set | frozenset):
        if len(value) > left[0]:
            raise _TooLargeError
        return [_plain(item, left, depth - 1) for item in value]
    return f"<{type(value).__name__}>"
