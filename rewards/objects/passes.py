"""How many pictures a detector looks at in one pass."""

from __future__ import annotations

from collections.abc import Iterator

from torch import device


def passes(num_pictures: int, on: device) -> Iterator[slice]:
    """Slices of a batch, in order: all at once on a GPU, one by one on a CPU.

    A detector sees 800 pixels a side or more. On a CPU, batches of four were measured to be slower than one by one
    (BENCHMARKS.md, `reward_models`).
    """
    size = 1 if on.type == "cpu" else max(num_pictures, 1)
    for first in range(0, num_pictures, size):
        yield slice(first, first + size)
