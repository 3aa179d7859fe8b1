"""How checkpoints are called: `step_000050`. What is called otherwise is not ours."""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile(r"step_(\d{6,})")


def name_of(step: int) -> str:
    return f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's name; None for any other name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found is not None and name_of(int(found[1])) == name else None
