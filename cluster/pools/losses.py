"""How many workers in a row were lost in a call without one answer in between: a sign that the work itself kills them.

    lost in a call ─► 1, 2, … ─► pause_s before the next one is started ─► MAX_IN_A_ROW: the pool gives up
    any answer     ─► 0

Workers that are lost together, because their node went, count once: only one that was started after the loss
before it is a new witness.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

MAX_IN_A_ROW: Final = 5


@dataclass(slots=True)
class Losses:
    """Workers are numbered in the order in which they were started."""

    num_in_a_row: int = field(default=0, init=False)
    _first_witness: int = field(default=0, init=False)
    """Number of the first worker that was started after the last loss that counted."""

    @property
    def are_hopeless(self) -> bool:
        return self.num_in_a_row >= MAX_IN_A_ROW

    @property
    def pause_s(self) -> float:
        """Before another one is started: none after the first loss, then 1, 2, 4, … seconds."""
        return 0.0 if self.num_in_a_row < 2 else 2.0 ** (self.num_in_a_row - 2)

    def answered(self) -> None:
        """A worker has answered a call."""
        self.num_in_a_row = 0

    def lost(self, number: int, num_started: int) -> None:
        """Worker `number` was lost in a call; `num_started` workers have been started so far."""
        if number >= self._first_witness:
            self.num_in_a_row += 1
            self._first_witness = num_started
