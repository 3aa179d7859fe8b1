"""A reward worker: one reward, fed with micro-batches from many groups at once.

    score(group a) ─┐            batch_size pictures of one size,
    score(group b) ─┼─► pending ─► or what is there after max_wait_ms ─► thread: the reward
    score(group c) ─┘                                                        │
          ▲                                                                  │ raised: the batch is halved, again
          │                                                                  ▼ and again, down to one picture
          └──── a Score or a RewardError each ◄──────────────────────────────┘

A picture is pending until the dispatcher takes it; the dispatcher sleeps until pictures arrive, and
is busy while a batch runs, so pictures gather meanwhile. The reward runs in one thread, always the same; what it has
to prepare, such as resizing, is done in another one for the next batch, if that is full (`rewards.worker.lookahead`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from configs.errors import ConfigError, RewardBrokenError, RewardError, RewardTimeoutError
from configs.schema import RewardConfig
from rewards.calling import Answer, LoadedReward, WrongAnswerError
from rewards.pictures import check_pictures
from rewards.registry import create_reward
from rewards.worker.failures import OutOfMemoryError, as_reward_error, free_gpu_memory, naming
from rewards.worker.figures import RewardFigures
from rewards.worker.lookahead import Ahead, LookAhead
from rewards.worker.pending import Pending, PendingPictures
from rollout.records import Prompt, UInt8Array

CLOSE_S = 5.0
"""For a reward's own `close`."""
MAX_FAILURES_MORE = 4
"""Calls in a row that may fail of one batch, beyond those that lead to one bad picture, before the rest is given up."""


class RewardWorker:
    """Scores pictures with one reward; a plain class, made for one event loop.

    A batch that fails is halved until the picture that is at fault is alone: it costs itself and no other. A batch
    that is too large for the device's memory sets the size of those to come. A call of the reward that takes longer
    than `timeout_s` fails all groups of its batch with RewardTimeoutError: its thread cannot be stopped and may be
    stuck, so later batches would wait for it in vain. The pool replaces such a replica, and one that raises
    RewardBrokenError, since its GPU is lost.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._reward: LoadedReward | None = None
        self._pending = PendingPictures()
        self._unfinished: set[asyncio.Future[Answer]] = set()
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"reward-{config.name}")
        self._dispatcher: asyncio.Task[None] | None = None
        self._ahead = LookAhead(self._take_full, self._prepare, self._arrival, f"prepare-{config.name}")
        self._batch_size = config.batch_size
        """At most; smaller than the config's where that does not fit."""
        self._running: asyncio.Future[list[Answer]] | None = None
        self._figures = RewardFigures()
        self._note: str | None = None

    async def start(self) -> None:
        """Make the reward, on a GPU if `gpus_per_replica` is above 0.

        Raises ConfigError for an unknown reward or option, or a cache of scores that cannot be kept, RewardError
        when it cannot be made, and what it raises of bicot's own (ModelError).
        """
        config = self._config
        device = "cuda" if config.gpus_per_replica > 0 else "cpu"
        loop = asyncio.get_running_loop()
        self._reward = await loop.run_in_executor(
            self._thread, create_reward, config.implementation, config.options, device, config.name
        )
        if config.cache and (self._reward.is_random or self._reward.is_group_wise):
            reason = (
                "may score a picture differently another time with these options"
                if self._reward.is_random
                else "scores the pictures of a group against each other"
            )
            raise ConfigError(
                f"rewards: '{config.name}' {reason}, so its scores cannot be kept; set its cache to false"
            )
        self._dispatcher = asyncio.create_task(self._dispatch())

    @property
    def reward(self) -> LoadedReward:
        """The reward, once it is made."""
        assert self._reward is not None
        return self._reward

    async def score(
        self, pictures: UInt8Array, prompts: Sequence[Prompt], plans: Sequence[str] | None = None
    ) -> list[Answer]:
        """One Score or RewardError a picture, in order. May be called any number of times at once.

        pictures: uint8 [B, height, width, 3], RGB; prompts: the B prompts they were drawn for; plans: the B plans
        that they were drawn by. For a group-wise reward, they are one group.
        Raises ValueError for wrong input, RewardTimeoutError when the reward hangs, and RewardBrokenError when it
        can score nothing more.
        """
        check_pictures(pictures, prompts)
        if plans is not None and len(plans) != len(prompts):
            raise ValueError(f"{len(plans)} plans came with {len(prompts)} prompts; give one plan a picture, or none")
        if self._dispatcher is None or self._dispatcher.done():
            raise RewardBrokenError(f"reward '{self._config.name}' is not running: start it first")
        loop = asyncio.get_running_loop()
        arrived_s, group = loop.time(), object()
        shown_plans: Sequence[str | None] = [None] * len(prompts) if plans is None else plans
        calls = [
            Pending(picture, prompt, plan, group, arrived_s, loop.create_future())
            for picture, prompt, plan in zip(pictures, prompts, shown_plans, strict=True)
        ]
        futures = [call.answer for call in calls]
        self._pending.add(calls)
        self._unfinished.update(futures)
        self._arrival.set()
        try:
            return list(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()
            self._unfinished.difference_update(futures)

    def take_figures(self) -> RewardFigures:
        """What was counted since the last time."""
        taken, self._figures = self._figures, RewardFigures()
        return taken

    def take_note(self) -> str | None:
        """What the user should know, once."""
        taken, self._note = self._note, None
        return taken

    async def close(self) -> None:
        """Stop; calls that still wait get a RewardError. Safe to call twice."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._dispatcher
        if self._reward is not None and (self._running is None or self._running.done()):
            closing = asyncio.get_running_loop().run_in_executor(self._thread, _close, self._reward)
            await asyncio.wait({closing}, timeout=CLOSE_S)
            closing.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._reward = None

    async def _dispatch(self) -> None:
        ahead: Ahead[Pending] | None = None
        try:
            while True:
                batch = await self._next_batch() if ahead is None else ahead.batch
                self._figures.queue_s += sum(asyncio.get_running_loop().time() - call.arrived_s for call in batch)
                if not self.reward.prepares:
                    await self._score_batch(batch)
                    continue
                self._ahead.begin()
                await self._score_batch(batch, None if ahead is None else ahead.prepared)
                ahead = await self._end_ahead()
        finally:
            self._ahead.close()
            for future in self._unfinished:
                if not future.done():
                    reason = f"reward '{self._config.name}' was closed before it answered"
                    future.set_exception(RewardBrokenError(reason))

    async def _next_batch(self) -> list[Pending]:
        """The oldest picture, and what came after it of its size: up to batch_size, after at most max_wait_ms."""
        loop = asyncio.get_running_loop()
        while True:
            group_wise = self.reward.is_group_wise
            batch = self._pending.next_group() if group_wise else self._pending.next_batch(self._batch_size)
            wait_s: float | None = None
            if batch:
                wait_s = batch[0].arrived_s + self._config.max_wait_ms / 1000 - loop.time()
                if len(batch) >= self._batch_size or wait_s <= 0 or group_wise:
                    self._pending.take(batch)
                    return batch
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._arrival.wait()

    async def _end_ahead(self) -> Ahead[Pending] | None:
        """The batch that was prepared meanwhile. One whose preparation hangs is failed as one that hangs itself."""
        started_s = asyncio.get_running_loop().time()
        try:
            ahead = await self._ahead.end(self._config.timeout_s)
        except TimeoutError:
            _end(self._ahead.batch, self._timeout_error(self._ahead.batch))
            return None
        self._figures.busy_s += asyncio.get_running_loop().time() - started_s
        return ahead

    def _take_full(self) -> list[Pending]:
        """A full batch of those that wait, taken from them; empty where they do not fill one."""
        batch = self._pending.next_batch(self._batch_size)
        if len(batch) < self._batch_size:
            return []
        self._pending.take(batch)
        return batch

    def _prepare(self, batch: Sequence[Pending]) -> Any:
        return self.reward.prepare(np.stack([call.picture for call in batch]), [call.prompt for call in batch])

    async def _score_batch(self, batch: list[Pending], prepared: Any = None) -> None:
        """Give every picture of the batch its score, or a RewardError. prepared: of the whole batch, or None."""
        parts = [batch]
        may_fail = math.ceil(math.log2(len(batch))) + 1 + MAX_FAILURES_MORE
        num_failed = 0  # in a row
        while parts:
            part = [call for call in parts.pop() if not call.answer.done()]
            if len(part) > self._batch_size and not self.reward.is_group_wise:
                parts += [part[self._batch_size :], part[: self._batch_size]]
                continue
            if not part:
                continue
            try:
                answers = await self._call_reward(part, prepared if len(part) == len(batch) else None)
                num_failed = 0
                self._deliver(part, answers)
            except (RewardTimeoutError, RewardBrokenError) as error:
                _end([*part, *(call for rest in parts for call in rest)], error)
                return
            except RewardError as error:
                num_failed += 1
                if isinstance(error, OutOfMemoryError):
                    self._have_less_at_once(len(part))
                is_whole = len(part) == 1 or self.reward.is_group_wise or isinstance(error, WrongAnswerError)
                if not is_whole and num_failed < may_fail:
                    self._figures.num_repeated += len(part)
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                    continue
                if num_failed >= may_fail:  # it is not the pictures
                    part += [call for rest in parts for call in rest]
                    parts.clear()
                self._deliver(part, [RewardError(str(error)) for _ in part])

    def _have_less_at_once(self, num_pictures: int) -> None:
        free_gpu_memory()
        fitting = max(1, num_pictures // 2)
        if num_pictures == 1 or fitting >= self._batch_size or self.reward.is_group_wise:
            return
        self._batch_size = fitting
        self._note = (
            f"reward '{self._config.name}' ran out of memory with {num_pictures} pictures at once and takes "
            f"{fitting} from now on; set its batch_size to {fitting}"
        )

    async def _call_reward(self, batch: list[Pending], prepared: Any) -> list[Answer]:
        """One call of the reward, in its thread, for at most timeout_s."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        running = loop.run_in_executor(self._thread, _call, self._config.name, self.reward, batch, prepared)
        self._running = running
        await asyncio.wait({running}, timeout=self._config.timeout_s)
        self._figures.num_calls += 1
        self._figures.busy_s += loop.time() - started_s
        if not running.done():
            running.cancel()
            raise self._timeout_error(batch)
        return running.result()

    def _timeout_error(self, batch: Sequence[Pending]) -> RewardTimeoutError:
        reason = RewardError(f"no answer within timeout_s ({self._config.timeout_s} s)")
        return RewardTimeoutError(str(as_reward_error(self._config.name, [call.prompt for call in batch], reason)))

    def _deliver(self, batch: Sequence[Pending], answers: Sequence[Answer]) -> None:
        self._figures.num_pictures += len(batch)
        self._figures.num_failed += sum(isinstance(answer, RewardError) for answer in answers)
        for call, answer in zip(batch, answers, strict=True):
            if not call.answer.done():
                call.answer.set_result(answer)


def _call(name: str, reward: LoadedReward, batch: Sequence[Pending], prepared: Any) -> list[Answer]:
    """Call the reward. Raises RewardError, naming the reward and the prompts, whatever it raises."""
    prompts = [call.prompt for call in batch]
    plans = [call.plan for call in batch if call.plan is not None]
    pictures = np.stack([call.picture for call in batch])
    try:
        answers = reward.score(pictures, prompts, plans if len(plans) == len(batch) else None, prepared)
    except BaseException as error:  # noqa: BLE001 - SystemExit or CancelledError would end the dispatcher
        raise as_reward_error(name, prompts, error) from None
    return [
        naming(name, prompt, answer) if isinstance(answer, RewardError) else answer
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _close(reward: LoadedReward) -> None:
    try:
        reward.close()
    except Exception as error:  # noqa: BLE001 - the user's own, at the end of everything: told, and no more
        print(f"a reward could not be closed: {type(error).__name__}: {error}", file=sys.stderr)


def _end(batch: Sequence[Pending], error: RewardError) -> None:
    """Fail these pictures' calls, each with an error of its own: one raised in two places mixes their tracebacks."""
    for call in batch:
        if not call.answer.done():
            call.answer.set_exception(type(error)(str(error)))
