"""Official data of benchmarks, where this machine has them: a folder named by an environment variable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "BICOT_BENCHMARK_DATA"


def official(*names: str) -> Path:
    """A file or folder within it; skips the test where there is none."""
    root = os.environ.get(VARIABLE)
    if not root:
        pytest.skip(f"{VARIABLE} names no folder with the official data of the benchmarks")
    path = Path(root).joinpath(*names)
    if not path.exists():
        pytest.skip(f"{VARIABLE} is {root}, which has no {'/'.join(names)}")
    return path
