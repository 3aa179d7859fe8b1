"""How long a stage of the pipeline has been at work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class BusyClock:
    """Counts the seconds in which at least one group is in a stage, and each second once."""

    clock: Callable[[], float] = time.monotonic
    _num_inside: int = field(default=0, init=False)
    _since_s: float = field(default=0.0, init=False)
    _total_s: float = field(default=0.0, init=False)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """A group is in the stage meanwhile."""
        self._count()
        self._num_inside += 1
        try:
            yield
        finally:
            self._count()
            self._num_inside -= 1

    def take_s(self) -> float:
        """Since it was last taken."""
        self._count()
        total_s, self._total_s = self._total_s, 0.0
        return total_s

    def _count(self) -> None:
        now_s = self.clock()
        if self._num_inside:
            self._total_s += now_s - self._since_s
        self._since_s = now_s
