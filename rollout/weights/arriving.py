"""A weight version on its way into a worker: its buckets, told of while the learner still exports it, or all at once.

told(k, bucket), told(k + 1, bucket), ... ─┐
told_all(buckets) ─────────────────────────┴─► buckets: fetched a few ahead, in their order
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Final

from configs.errors import WeightSyncError
from rollout.records import WeightBucket, WeightVersion

_AHEAD: Final = 2
"""Buckets of weights that are fetched while one is loaded."""


class ArrivingVersion:
    """The buckets of one version. `told` is a hint, which may be lost; `told_all` is the whole truth."""

    def __init__(self, version: WeightVersion, patience_s: float) -> None:
        """patience_s: how long one bucket may take to be told of, and to come after that."""
        self.version = version
        self._patience_s = patience_s
        self._references: list[Awaitable[WeightBucket]] = []
        self._total: int | None = None
        self._is_given_up = False
        self._news = asyncio.Event()

    @property
    def is_known(self) -> bool:
        """Whether all of its buckets have been told of."""
        return self._total is not None

    def told(self, first: int, references: Sequence[Awaitable[WeightBucket]]) -> None:
        """These buckets, from number `first` on, have been exported. Passed over where one before them is not known."""
        if not self.is_known and first == len(self._references):
            self._references += references
            self._news.set()

    def told_all(self, references: Sequence[Awaitable[WeightBucket]]) -> None:
        """These are all buckets of the version."""
        self._references += references[len(self._references) :]
        self._total = len(references)
        self._news.set()

    def give_up(self) -> None:
        """No more will be told: `buckets` raises WeightSyncError."""
        self._is_given_up = True
        self._news.set()

    async def buckets(self) -> AsyncGenerator[WeightBucket, None]:
        """All buckets in their order, however long all of them take; the next ones are on their way meanwhile, and none
        is held after the next was asked for.

        Raises WeightSyncError when one has not come in time: Ray may wait for ever for one that it could not map into a
        process without memory.
        """
        fetching: deque[asyncio.Future[WeightBucket]] = deque()
        num_asked = number = 0
        try:
            while await self._is_there(number):
                ahead = self._references[num_asked : number + 1 + _AHEAD]
                fetching.extend(asyncio.ensure_future(reference) for reference in ahead)
                num_asked += len(ahead)
                number += 1
                bucket = fetching.popleft()
                if not (await asyncio.wait({bucket}, timeout=self._patience_s))[0]:
                    bucket.cancel()
                    raise self._late(number)
                yield bucket.result()
                del bucket
        finally:
            for each in fetching:
                each.cancel()

    async def _is_there(self, number: int) -> bool:
        """Wait until bucket `number`, from 0, is known; False when there is none."""
        while len(self._references) <= number and self._total is None:
            self._news.clear()
            if self._is_given_up:
                raise WeightSyncError(f"weight version {self.version.number} was given up while it was exported")
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._news.wait()
            except TimeoutError:
                raise self._late(number + 1) from None
        return len(self._references) > number

    def _late(self, number: int) -> WeightSyncError:
        of = "" if self._total is None else f" of {self._total}"
        return WeightSyncError(f"bucket {number}{of} of the weights did not come for {self._patience_s:g} s")
