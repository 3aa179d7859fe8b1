"""A Ray actor that carries progress of long work to the launcher."""

from __future__ import annotations


class ProgressActor:
    """Carries progress of long work in another actor to the launcher, which asks for it now and then."""

    def __init__(self) -> None:
        self._latest: tuple[str, int, int, dict[str, float]] | None = None

    async def stage(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        self._latest = (stage, done, total, metrics)

    async def latest(self) -> tuple[str, int, int, dict[str, float]] | None:
        return self._latest
