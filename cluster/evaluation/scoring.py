"""Scoring on a pool of replicas of a benchmark's scorer.

files ─► chunks ─► least busy replica ─► one answer a file ─► the run's folder, as they come
            ▲   │ the replica died, or the chunk failed: its halves, to others
            └───┘ a single file that has failed `MAX_TRIES` times: a RewardError in the place of its answer
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from ray.exceptions import RayError

from cluster.actors import spawn
from cluster.evaluation.bridge import Bridge, StoppedError, result_of
from cluster.evaluation.drawing import ignore
from cluster.evaluation.scorer_actor import ScorerActor, SentFile
from cluster.pools import ActorPool, Patience, PoolHooks
from cluster.pools.cancellation import end_tasks
from cluster.pools.remote_errors import CallFailedError, WorkerLostError, first_line
from configs.errors import ConfigError, RewardError
from configs.schema import BenchmarkConfig, RunConfig
from rewards.benchmarks.protocol import Answer, Asked, Benchmark, ScorerOptions

CHUNK: Final = 8
"""Files of one call: a replica's scorer makes its batches of them."""
CALLS_AT_ONCE: Final = 2
"""Of one replica: the next files are there when it is ready for them."""
MAX_TRIES: Final = 4
"""Of one file, before it counts as failed."""
CALL_TIMEOUT_S: Final = 1800.0
"""For one chunk: a CPU needs minutes for it at most."""

Answered = tuple[Asked, Answer | RewardError]


class PoolScorer:
    """A `rewards.benchmarks.protocol.Scorer`, whose replicas are actors. For a thread beside the event loop."""

    def __init__(
        self,
        benchmark: Benchmark,
        options: ScorerOptions,
        config: RunConfig,
        section: BenchmarkConfig,
        run_name: str,
        bridge: Bridge,
        note: Callable[[str], None],
    ) -> None:
        """section: how many replicas, and on what."""
        self._bridge = bridge
        self._about: Mapping[str, Any] | None = None
        cluster = config.cluster

        def make(worker_id: str) -> Any:
            return spawn(
                ScorerActor,
                *(benchmark.name, options),
                name=f"{run_name}-{worker_id}",
                num_cpus=section.cpus,
                num_gpus=section.gpus,
                threads=max(1, int(section.cpus)),
            )

        self._pool = ActorPool(
            f"scorer-{benchmark.name}",
            section.replicas,
            CALLS_AT_ONCE,
            PoolHooks(make, self._start, ignore, note),
            Patience(config.run.start_timeout_s, cluster.heartbeat_s, cluster.heartbeat_timeout_s),
        )
        self._places = asyncio.Semaphore(2 * CALLS_AT_ONCE * section.replicas)
        """Chunks that are in memory at once."""

    def start(self) -> None:
        """Start the replicas, and wait for them. Raises what keeps them from starting, and ConfigError where one has
        other weights than another."""
        self._bridge.wait(self._pool.start())

    async def _start(self, handle: Any) -> None:
        about = await handle.start.remote()
        if self._about is None:
            self._about = about
        elif about != self._about:
            differing = sorted(
                name for name in set(about) | set(self._about) if about.get(name) != self._about.get(name)
            )
            raise ConfigError(
                f"two replicas of the scorer differ in {', '.join(differing)}; bring the same files to all nodes"
            )

    def answers(self, asked: Sequence[Asked]) -> Iterator[Answered]:
        """See `Scorer.answers`."""
        arrived: queue.SimpleQueue[Answered | None] = queue.SimpleQueue()
        scoring = self._bridge.begin(self._score_all(asked, arrived.put))
        scoring.add_done_callback(lambda _: arrived.put(None))
        try:
            while (one := arrived.get()) is not None:
                yield one
            result_of(scoring)
        finally:
            scoring.cancel()

    def about(self) -> Mapping[str, Any]:
        """See `Scorer.about`."""
        return self._about or {}

    def close(self) -> None:
        """End the replicas; `Evaluation` does where it was told to stop."""
        with suppress(StoppedError):
            self._bridge.wait(self.end())

    async def end(self) -> None:
        """The same in the event loop."""
        with suppress(RayError):
            await self._pool.close()

    async def _score_all(self, asked: Sequence[Asked], put: Callable[[Answered], None]) -> None:
        chunks = [asked[start : start + CHUNK] for start in range(0, len(asked), CHUNK)]
        scoring = [asyncio.create_task(self._score_chunk(chunk, put)) for chunk in chunks]
        try:
            await asyncio.gather(*scoring)
        finally:
            await end_tasks(scoring)

    async def _score_chunk(self, chunk: Sequence[Asked], put: Callable[[Answered], None]) -> None:
        async with self._places:
            files = await asyncio.to_thread(_read, chunk)
            for one, answer in zip(chunk, await score_in_parts(self._call, files), strict=True):
                put((one, answer))

    async def _call(self, files: Sequence[SentFile]) -> list[Answer | RewardError]:
        answers: list[Answer | RewardError] = await self._pool.call(
            lambda handle: handle.score.remote(files), CALL_TIMEOUT_S
        )
        return answers


async def score_in_parts(
    call: Callable[[Sequence[SentFile]], Awaitable[list[Answer | RewardError]]],
    files: Sequence[SentFile],
    num_tries: int = MAX_TRIES,
) -> list[Answer | RewardError]:
    """One answer a file, by calls that may fail: then the halves are tried, so that a file at fault costs no other.

    A file that has failed `num_tries` times has the last reason in the place of its answer.
    """
    try:
        return await call(files)
    except (RewardError, WorkerLostError, CallFailedError) as error:
        if num_tries == 1:
            return [RewardError(first_line(error)) for _ in files]
    middle = (len(files) + 1) // 2
    parts = [await score_in_parts(call, half, num_tries - 1) for half in (files[:middle], files[middle:]) if half]
    return [answer for part in parts for answer in part]


def _read(chunk: Sequence[Asked]) -> list[SentFile]:
    return [SentFile(one.item, one.number, one.path.suffix, one.path.read_bytes()) for one in chunk]
