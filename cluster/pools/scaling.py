"""When an elastic pool grows, and when it shrinks: a pure policy, fed with one `Load` at each look.

    starved   the pool's output is awaited, and its members have more to do than one call each
    idle      members without a call, at looks where nobody waits for the pool

    starved at half of the looks of grow_after_s        ─► grow: by half, as far as there is room and work
    a member idle at every look of shrink_after_s,      ─► shrink: by one
      and starved at hardly any

Between the two lies a band in which nothing happens. After each change, and while newcomers still
start, the looks are forgotten: a change is judged by what came after it, which is also the cool-down.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

STARVED_SHARE: Final = 0.5
"""Of the looks, from which on a pool grows."""
CONTENT_SHARE: Final = 0.1
"""Of the looks, up to which a pool may shrink."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a pool is at, at one instant."""

    time_s: float
    """Monotonic."""
    size: int
    """Members that the pool is to have."""
    num_joining: int
    num_idle: int
    num_calls: int
    """Calls that are made, and those that wait for a free member."""
    is_awaited: bool
    """Whether somebody downstream waits for what the pool makes."""
    room: int
    """Further members that the cluster could hold now, or could make room for."""


@dataclass(slots=True)
class ScalingPolicy:
    """The size that a pool should have, of `min_size` to `max_size`."""

    min_size: int
    max_size: int
    grow_after_s: float
    shrink_after_s: float
    _looks: deque[tuple[float, bool, bool]] = field(default_factory=deque, init=False)
    """(time, whether the pool was starved, whether a member was idle) since the last change."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(f"min_size {self.min_size} and max_size {self.max_size} are no range of sizes")

    def size_for(self, load: Load) -> int:
        """The size from now on; `load.size` when nothing is to change."""
        if load.num_joining:
            self._looks.clear()
            return load.size
        is_starved = load.is_awaited and load.num_calls > load.size
        self._looks.append((load.time_s, is_starved, load.num_idle > 0 and not is_starved))
        while load.time_s - self._looks[0][0] > self.shrink_after_s:
            self._looks.popleft()
        size = self._grown(load) or self._shrunk(load) or load.size
        if size != load.size:
            self._looks.clear()
        return size

    def _grown(self, load: Load) -> int | None:
        recent = [is_starved for time_s, is_starved, _ in self._looks if load.time_s - time_s <= self.grow_after_s]
        if not self._covers(load, self.grow_after_s) or sum(recent) < STARVED_SHARE * len(recent):
            return None
        # A member for which there is no call would bring nothing.
        more = min(max(1, load.size // 2), load.room, self.max_size - load.size, load.num_calls - load.size)
        return load.size + more if more > 0 else None

    def _shrunk(self, load: Load) -> int | None:
        if not self._covers(load, self.shrink_after_s) or load.size <= self.min_size:
            return None
        num_starved = sum(is_starved for _, is_starved, _ in self._looks)
        is_needless = all(has_idle or is_starved for _, is_starved, has_idle in self._looks)
        return load.size - 1 if is_needless and num_starved <= CONTENT_SHARE * len(self._looks) else None

    def _covers(self, load: Load, duration_s: float) -> bool:
        """Whether the looks reach that far back, up to one look's distance."""
        times = [time_s for time_s, _, _ in self._looks]
        distance_s = times[1] - times[0] if len(times) > 1 else 0.0
        return len(times) > 1 and load.time_s - times[0] >= duration_s - distance_s
