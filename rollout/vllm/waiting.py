"""Answers of the engine core that may never come: vLLM itself waits for ever for one from a core that has died."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from configs.errors import BicotError

_LOOK_EVERY_S: Final = 0.5


class MayDie(Protocol):
    @property
    def is_usable(self) -> bool: ...


async def answer_or_death(work: Coroutine[Any, Any, Any], engine: MayDie, to_raise: type[BicotError]) -> None:
    """Await `work`, which asks the engine core something. Raises what it raises, and `to_raise` when the engine is no
    longer usable; `work` is then cancelled."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK_EVERY_S)
            if not task.done() and not engine.is_usable:
                raise to_raise("the vLLM engine died while its answer was waited for")
    finally:
        task.cancel()
    task.result()
