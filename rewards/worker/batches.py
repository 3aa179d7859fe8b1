"""A reward worker: one reward, fed with micro-batches from many groups at once.

    score(group a) ─┐            batch_size pictures of one size,
    score(group b) ─┼─► pending ─► or what is there after max_wait_ms ─► thread: reward.score
    score(group c) ─┘                                                        │
          ▲                                                                  │ raised, or wrong Scores
          │                                                                  ▼
          └──── Scores, or RewardError ◄── one by one ◄── `retries` more times as a batch

A picture is pending until the dispatcher takes it; the dispatcher sleeps until pictures arrive, and
is busy while a batch runs, so pictures gather meanwhile. The reward runs in one thread, always the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import numbers
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from configs.errors import ConfigError, RewardError, RewardTimeoutError
from configs.schema import RewardConfig
from rewards.pictures import check_pictures
from rewards.protocol import Reward
from rewards.registry import create_reward
from rollout.records import Prompt, Score, UInt8Array


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """One picture that waits for its score."""

    picture: UInt8Array
    prompt: Prompt
    arrived_s: float
    """Clock of the event loop."""
    score: asyncio.Future[Score]


class RewardWorker:
    """Scores pictures with one reward; a plain class, made for one event loop.

    A batch that fails is tried `retries` more times, then picture by picture, so that one bad picture
    fails its own group and not its neighbours'. A call of the reward that takes longer than `timeout_s`
    fails all groups of its batch with RewardTimeoutError and is not tried again here: its thread cannot be
    stopped and may be stuck, so later batches would wait for it in vain. The pool replaces such a replica.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._reward: Reward | None = None
        self._pending: list[_Pending] = []
        self._unfinished: set[asyncio.Future[Score]] = set()
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"reward-{config.name}")
        self._dispatcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make the reward, on a GPU if `gpus_per_replica` is above 0.

        Raises ConfigError for an unknown reward or option, or a cache of random scores, and whatever the reward
        raises (ModelError).
        """
        device = "cuda" if self._config.gpus_per_replica > 0 else "cpu"
        loop = asyncio.get_running_loop()
        self._reward = await loop.run_in_executor(
            self._thread, create_reward, self._config.name, self._config.options, device
        )
        if self._config.cache and getattr(self._reward, "is_random", False):
            raise ConfigError(
                f"rewards: '{self._config.name}' may score a picture differently another time with these options, "
                "so its scores cannot be kept; set its cache to false"
            )
        self._dispatcher = asyncio.create_task(self._dispatch())

    async def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """One Score a picture, in order. May be called any number of times at once.

        pictures: uint8 [B, height, width, 3], RGB; prompts: the B prompts they were drawn for.
        Raises ValueError for wrong input, RewardError when a picture could not be scored, and of these
        RewardTimeoutError when the reward hangs.
        """
        check_pictures(pictures, prompts)
        if self._dispatcher is None or self._dispatcher.done():
            raise RewardError(f"reward '{self._config.name}' is not running: start it first")
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        calls = [
            _Pending(picture, prompt, arrived_s, loop.create_future())
            for picture, prompt in zip(pictures, prompts, strict=True)
        ]
        futures = [call.score for call in calls]
        self._pending.extend(calls)
        self._unfinished.update(futures)
        self._arrival.set()
        try:
            return list(await asyncio.gather(*futures))
        finally:
            # After a failure the call's other pictures need no score any more.
            for future in futures:
                future.cancel()
            self._unfinished.difference_update(futures)

    async def close(self) -> None:
        """Stop; calls that still wait get a RewardError. Safe to call twice."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._dispatcher
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._reward = None

    async def _dispatch(self) -> None:
        try:
            while True:
                await self._score_batch(await self._next_batch())
        finally:
            for future in self._unfinished:
                if not future.done():
                    future.set_exception(RewardError(f"reward '{self._config.name}' was closed before it answered"))

    async def _next_batch(self) -> list[_Pending]:
        """The oldest picture, and what came after it of its size: up to batch_size, after at most max_wait_ms."""
        loop = asyncio.get_running_loop()
        while True:
            self._pending = [call for call in self._pending if not call.score.done()]
            batch = self._same_size_as_oldest()
            wait_s: float | None = None
            if batch:
                wait_s = batch[0].arrived_s + self._config.max_wait_ms / 1000 - loop.time()
                if len(batch) == self._config.batch_size or wait_s <= 0:
                    self._pending = [call for call in self._pending if call not in batch]
                    return batch
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._arrival.wait()

    def _same_size_as_oldest(self) -> list[_Pending]:
        same_size = [call for call in self._pending if call.picture.shape == self._pending[0].picture.shape]
        return same_size[: self._config.batch_size]

    async def _score_batch(self, batch: list[_Pending]) -> None:
        """Give every picture of the batch its score, or a RewardError."""
        for tries_left in range(self._config.retries, -1, -1):
            try:
                scores = await self._call_reward(batch)
            except RewardError as error:
                last_try = tries_left == 0 and len(batch) == 1
                if last_try or isinstance(error, RewardTimeoutError):
                    _fail(batch, error)
                    return
            else:
                _deliver(batch, scores)
                return
        await self._score_one_by_one(batch)

    async def _score_one_by_one(self, batch: list[_Pending]) -> None:
        for i, call in enumerate(batch):
            if call.score.done():
                continue
            try:
                scores = await self._call_reward([call])
            except RewardTimeoutError as error:
                _fail(batch[i:], error)
                return
            except RewardError as error:
                _fail([call], error)
            else:
                _deliver([call], scores)

    async def _call_reward(self, batch: list[_Pending]) -> list[Score]:
        """One call of the reward, in its thread, for at most timeout_s."""
        assert self._reward is not None
        loop = asyncio.get_running_loop()
        pictures = [call.picture for call in batch]
        prompts = [call.prompt for call in batch]
        running = loop.run_in_executor(
            self._thread, _score_and_check, self._config.name, self._reward, pictures, prompts
        )
        await asyncio.wait({running}, timeout=self._config.timeout_s)
        if not running.done():
            running.cancel()
            raise RewardTimeoutError(
                f"{_failure(self._config.name, prompts)} no answer within timeout_s ({self._config.timeout_s} s)"
            )
        return running.result()


def _score_and_check(
    name: str, reward: Reward, pictures: Sequence[UInt8Array], prompts: Sequence[Prompt]
) -> list[Score]:
    """Call the reward and check its answer. Raises RewardError, naming the reward and the prompts."""
    try:
        scores = reward.score(np.stack(pictures), prompts)
    except Exception as error:
        raise RewardError(f"{_failure(name, prompts)} {type(error).__name__}: {error}") from error
    if not isinstance(scores, list) or not all(isinstance(score, Score) for score in scores):
        raise RewardError(f"{_failure(name, prompts)} it must return a list of Score, not {_shorten(repr(scores))}")
    if len(scores) != len(prompts):
        raise RewardError(f"{_failure(name, prompts)} it returned {len(scores)} scores for {len(prompts)} pictures")
    wrong = [
        (prompt, score.value)
        for prompt, score in zip(prompts, scores, strict=True)
        if score.value is not None and not (isinstance(score.value, numbers.Real) and math.isfinite(score.value))
    ]
    if wrong:
        prompts_of_wrong, values = zip(*wrong, strict=True)
        raise RewardError(f"{_failure(name, prompts_of_wrong)} a score must be a finite number, not {values[0]!r}")
    return scores


def _failure(name: str, prompts: Sequence[Prompt]) -> str:
    prompt_ids = ", ".join(dict.fromkeys(prompt.prompt_id for prompt in prompts))
    return f"reward '{name}' failed on {prompt_ids}:"


def _shorten(text: str, num_characters: int = 80) -> str:
    return text if len(text) <= num_characters else f"{text[:num_characters]}..."


def _deliver(batch: Sequence[_Pending], scores: Sequence[Score]) -> None:
    for call, score in zip(batch, scores, strict=True):
        if not call.score.done():
            call.score.set_result(score)


def _fail(batch: Sequence[_Pending], error: RewardError) -> None:
    """Fail these pictures, each with an error of its own: one raised in two places mixes their tracebacks."""
    for call in batch:
        if not call.score.done():
            failure = type(error)(str(error))
            failure.__cause__ = error.__cause__
            call.score.set_exception(failure)
