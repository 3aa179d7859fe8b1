"""Typed fakes of our own protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from rollout.engine import SequenceRequest, SequenceResult
from rollout.records import BucketStream


class FakeEngine:
    """Implements `rollout.engine.Engine` without a model: a sequence is a function of prompt, seed and version.

    turns: how many turns of the event loop a sequence takes; fails: which sequences raise.
    """

    def __init__(
        self,
        num_codes: int,
        word_ids: Sequence[int],
        eos_id: int,
        turns: Callable[[SequenceRequest], int] = lambda request: 1,
        fails: Callable[[SequenceRequest], bool] = lambda request: False,
    ) -> None:
        self.num_codes = num_codes
        self.word_ids = list(word_ids)
        self.eos_id = eos_id
        self.turns = turns
        self.fails = fails
        self.events: list[tuple[str, SequenceRequest]] = []
        """(`start`, `end` or `cancelled`, request), in order."""
        self.batches: list[list[SequenceRequest]] = []
        """What was asked for together, in order."""
        self.is_asleep = False
        self._weight_version = 0

    async def generate(self, request: SequenceRequest) -> SequenceResult:
        self.events.append(("start", request))
        first_version = self._weight_version
        try:
            for _ in range(self.turns(request)):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.events.append(("cancelled", request))
            raise
        if self.fails(request):
            raise RuntimeError(f"no luck with {request.phase}")
        self.events.append(("end", request))
        rng = np.random.default_rng([request.seed, self._weight_version, *request.prompt_ids.tolist()])
        if request.phase == "cot":
            num_words = int(rng.integers(1, request.max_new_tokens))
            token_ids = np.append(rng.choice(self.word_ids, num_words), self.eos_id)
        else:
            token_ids = rng.integers(0, self.num_codes, request.max_new_tokens)
        return SequenceResult(
            token_ids=token_ids.astype(np.int32),
            logprobs=-rng.random(len(token_ids)).astype(np.float32),
            weight_versions=np.array([first_version, *[self._weight_version] * (len(token_ids) - 1)], np.int32),
        )

    async def generate_together(self, requests: Sequence[SequenceRequest]) -> list[SequenceResult]:
        self.batches.append(list(requests))
        return list(await asyncio.gather(*map(self.generate, requests)))

    async def update_weights(self, version: int, buckets: BucketStream) -> None:
        self._weight_version = version

    async def sleep(self) -> None:
        self.is_asleep = True

    async def wake(self) -> None:
        self.is_asleep = False

    @property
    def collective(self) -> None:
        return None

    @property
    def figures(self) -> None:
        return None

    @property
    def weight_version(self) -> int:
        return self._weight_version

    @property
    def is_usable(self) -> bool:
        return True

    async def check_alive(self) -> None:
        return None

    async def close(self) -> None:
        return None
