"""The next batch, prepared in a thread of its own while another one is scored.

    batch n      ───────── scored ─────────►│
    batch n + 1        ├─ prepared ─┤       ├───────── scored ─────────►

Taken ahead is only what fills a batch: pictures that would make half of one may yet become a whole one. What cannot be
prepared is scored all the same, and then fails there, where the picture at fault is looked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Ahead(Generic[Item]):
    """A batch that was taken ahead."""

    batch: list[Item]
    prepared: Any
    """None where it could not be prepared."""


class LookAhead(Generic[Item]):
    """For one event loop, and one batch at a time."""

    def __init__(
        self,
        take: Callable[[], list[Item]],
        prepare: Callable[[Sequence[Item]], Any],
        arrival: asyncio.Event,
        name: str,
    ) -> None:
        """take: removes a full batch from those that wait, empty where there is none; arrival: set when more wait;
        prepare: called in the thread of this name.
        """
        self._take, self._prepare, self._arrival = take, prepare, arrival
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._task: asyncio.Task[Any] | None = None
        self._batch: list[Item] = []

    def begin(self) -> None:
        """Look for a batch from now on."""
        self._batch = []
        self._task = asyncio.create_task(self._take_one())

    async def end(self, timeout_s: float) -> Ahead[Item] | None:
        """Stop looking; the batch that was found, when it is prepared. Raises TimeoutError, then see `batch`."""
        assert self._task is not None
        if not self._batch:
            self._task.cancel()
            await asyncio.wait({self._task})
            return None
        await asyncio.wait({self._task}, timeout=timeout_s)
        if not self._task.done():
            raise TimeoutError
        return Ahead(self._batch, self._task.result())

    @property
    def batch(self) -> list[Item]:
        """What was taken since `begin`."""
        return self._batch

    def close(self) -> None:
        """Stop; a thread that is at work is not waited for."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _take_one(self) -> Any:
        while not (batch := self._take()):
            self._arrival.clear()
            await self._arrival.wait()
        self._batch = batch
        return await asyncio.get_running_loop().run_in_executor(self._thread, _try, self._prepare, batch)


def _try(prepare: Callable[[Sequence[Item]], Any], batch: Sequence[Item]) -> Any:
    try:
        return prepare(batch)
    except BaseException:  # noqa: BLE001 - it comes again, and is told, when the batch is scored
        return None
