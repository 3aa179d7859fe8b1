"""rewards/worker/lookahead.py: the next batch is prepared while one is scored, and nothing else changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from configs.errors import RewardError, RewardTimeoutError
from configs.schema import RewardConfig
from rewards.worker import RewardWorker
from rollout.records import Prompt, UInt8Array

PREPARED: list[tuple[str, ...]] = []
SCORED: list[bool] = []
"""Of each call, whether it was given what was prepared."""
IN_SECOND = threading.Event()
"""The second batch is being prepared."""
RELEASE = threading.Event()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    PREPARED.clear()
    SCORED.clear()
    IN_SECOND.clear()
    RELEASE.clear()


class Twice:
    """Twice the brightness of a picture; `prepare` doubles it."""

    def __init__(self, misbehave: str = "") -> None:
        self._misbehave = misbehave

    @staticmethod
    def applies_to(prompt: Prompt, options: Any) -> bool:
        return prompt.text != "skip"

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Any:
        PREPARED.append(tuple(prompt.text for prompt in prompts))
        IN_SECOND.set()
        if self._misbehave == "hang":
            assert RELEASE.wait(20)
        if self._misbehave == "fail" and any(prompt.text == "bad" for prompt in prompts):
            raise ValueError("cannot be resized")
        return 2 * pictures.mean(axis=(1, 2, 3))

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: Any = None) -> list[float]:
        if self._misbehave == "wait" and not SCORED:
            assert IN_SECOND.wait(20), "the second batch was not prepared while the first was scored"
        SCORED.append(prepared is not None)
        values = self.prepare(pictures, prompts) if prepared is None else prepared
        assert len(values) == len(pictures) == len(prompts)
        return [float(value) for value in values]


def group(level: int, *texts: str) -> tuple[UInt8Array, list[Prompt]]:
    pictures = np.full((len(texts), 4, 4, 3), level, dtype=np.uint8)
    return pictures, [Prompt(f"{text}:{level}", text) for text in texts]


def run(misbehave: str, *groups: tuple[UInt8Array, list[Prompt]], **fields: Any) -> list[Any]:
    config = RewardConfig(name=f"{__name__}:Twice", options={"misbehave": misbehave}, batch_size=2, **fields)

    async def scenario() -> list[Any]:
        worker = RewardWorker(config)
        await worker.start()
        try:
            calls = (worker.score(*one) for one in groups)
            return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), timeout=30)
        finally:
            RELEASE.set()
            await worker.close()

    return asyncio.run(scenario())


def values(answers: Sequence[Any]) -> list[Any]:
    return [str(answer) if isinstance(answer, RewardError) else answer.value for answer in answers]


def test_the_next_batch_is_prepared_while_one_is_scored() -> None:
    first, second, third = run("wait", group(10, "a", "b"), group(20, "c", "d"), group(30, "e", "f"))
    assert [values(answers) for answers in (first, second, third)] == [[20, 20], [40, 40], [60, 60]]
    assert SCORED == [False, True, True]


def test_half_a_batch_is_not_taken_ahead() -> None:
    """More pictures may yet fill it."""
    first, second = run("", group(10, "a", "b"), group(20, "c"))
    assert (values(first), values(second)) == ([20, 20], [40])
    assert SCORED == [False, False]


def test_a_batch_that_cannot_be_prepared_costs_only_the_picture_at_fault() -> None:
    _, second = run("fail", group(10, "a", "b"), group(20, "c", "bad"))
    good, bad = values(second)
    assert good == 40
    assert "cannot be resized" in bad
    assert not any(SCORED[1:])


def test_what_the_reward_does_not_apply_to_is_not_prepared() -> None:
    _, second, third = run("", group(10, "a", "b"), group(20, "skip", "d"), group(30, "skip", "skip"))
    assert (values(second), values(third)) == ([None, 40], [None, None])
    assert ("d",) in PREPARED
    assert all("skip" not in texts for texts in PREPARED)


def test_a_call_that_was_given_up_takes_what_was_prepared_with_it() -> None:
    """What was prepared belongs to the whole batch."""

    async def scenario() -> list[Any]:
        worker = RewardWorker(RewardConfig(name=f"{__name__}:Twice", options={"misbehave": "wait"}, batch_size=2))
        await worker.start()
        try:
            first = asyncio.create_task(worker.score(*group(10, "a", "b")))
            given_up = asyncio.create_task(worker.score(*group(20, "c")))
            kept = asyncio.create_task(worker.score(*group(30, "d")))
            while not IN_SECOND.is_set():
                await asyncio.sleep(0.001)
            given_up.cancel()
            return await asyncio.wait_for(asyncio.gather(first, kept), timeout=30)
        finally:
            await worker.close()

    first, kept = asyncio.run(scenario())
    assert (values(first), values(kept)) == ([20, 20], [60])


def test_a_preparation_that_hangs_fails_its_batch_in_time() -> None:
    first, second = run("hang", group(10, "a", "b"), group(20, "c", "d"), timeout_s=0.3)
    assert isinstance(first, RewardTimeoutError)
    assert isinstance(second, RewardTimeoutError | RewardError)


def test_closing_ends_the_thread_that_prepares() -> None:
    before = set(threading.enumerate())
    run("", group(10, "a", "b"), group(20, "c", "d"), group(30, "e", "f"))
    started = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("prepare-")]
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
