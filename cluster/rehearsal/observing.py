"""What a rehearsal sees of a life of the run: its stages and its steps by the clock, and what each actor used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.exceptions import RayError

from cluster.actors.usage import Usage, ask_usage
from cluster.reports import Progress

USAGE_TIMEOUT_S: Final = 20.0
TRAINING: Final = "training"


@dataclass(slots=True)
class Life:
    """One launch, as it was seen."""

    stages: dict[str, float] = field(default_factory=dict)
    """What the run was busy with -> seconds, in the order in which it came."""
    steps: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each step."""
    usages: dict[str, Usage] = field(default_factory=dict)
    """Of each actor, by its name without the run's."""
    stage: str = ""
    """The last one."""
    _since_s: float = 0.0

    def enter(self, stage: str, reached_back_s: float = 0.0) -> None:
        """The stage that begins now, or began so long ago."""
        now = time.monotonic() - reached_back_s
        if self.stage:
            self.stages[self.stage] = self.stages.get(self.stage, 0.0) + now - self._since_s
        self.stage, self._since_s = stage, now

    def make_progress(self, total_steps: int) -> Progress:
        return _ObservedProgress(total_steps, self)

    async def take_usages(self, run_name: str) -> None:
        """Ask every actor of the run that still lives, and can be asked."""
        self.enter(self.stage)
        handles = {name.removeprefix(f"{run_name}-"): ray.get_actor(name) for name in ray.util.list_named_actors()}
        asked = {name: ask for name, handle in handles.items() if (ask := ask_usage(handle)) is not None}
        answers = await asyncio.gather(*(_answer(ask) for ask in asked.values()))
        self.usages.update({name: usage for name, usage in zip(asked, answers, strict=True) if usage is not None})


class _ObservedProgress(Progress):
    def __init__(self, total_steps: int, life: Life) -> None:
        super().__init__(total_steps)
        self._life = life

    def stage(self, name: str, done: int | None = None, total: int | None = None, detail: str = "") -> None:
        self._life.enter(name)
        super().stage(name, done, total, detail)

    def step(self, metrics: Mapping[str, float]) -> None:
        is_first = self._life.stage != TRAINING
        self._life.enter(TRAINING, metrics.get("time/step_s", 0.0) if is_first else 0.0)
        self._life.steps.append(dict(metrics))
        super().step(metrics)


async def _answer(reference: Any) -> Usage | None:
    """None of an actor that has died, or is too busy to say."""
    try:
        async with asyncio.timeout(USAGE_TIMEOUT_S):
            usage: Usage = await reference
            return usage
    except (RayError, TimeoutError):
        return None
