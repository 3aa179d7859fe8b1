"""When a worker is asked whether it lives: only one that has said nothing lately, and not many at once.

    an answer of any kind ─► quiet for heartbeat_s ─► its turn, one of max_per_s a second ─► still quiet ─► ping

A ping costs the launcher as much as any other call, more than half a millisecond of a core, so that hundreds of
workers must not be asked every few seconds. All pools of a run share one pace: N workers are sent at most
`max_per_s` pings a second, whatever N is, and one of them is asked at the latest

    heartbeat_s + N / max_per_s

after it was last heard of: up to 20 workers every 5 s, as without a pace; 512 workers within two and a quarter
minutes. (A process that dies during a call is noticed at once, by the call; one that died idle by its next call.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class PingPace:
    """Gives out turns, first come, first served. It has no clock: times are told to it, in seconds."""

    max_per_s: float = 4.0
    _free_s: float = field(default=-math.inf, init=False)
    """From when on there is a turn that nobody has."""

    def take_turn(self, now_s: float) -> float:
        """When the caller may ping: now, or later. A turn that is not used is lost."""
        turn_s = max(now_s, self._free_s)
        self._free_s = turn_s + 1 / self.max_per_s
        return turn_s
