"""Weight sync: version n of the learner's weights reaches every rollout worker.

    learner ranks ─► publish(n) ─► [store | collective] ─► every READY rollout worker
                                        └────────────────► a worker that joins later: catch_up

`ObjectStoreSync` is pull-based: each worker fetches the buckets from Ray's object store at its own pace, so that a
slow, dead or joining worker holds up nobody else's copy. Nodes are asked to in waves (`waves.py`), so that those that
have a version serve it to the next ones. The first wave loads bucket k while the learner exports k + 1: each bucket is
told to it at once, as a hint that may be lost, and `deliver` tells all of them. The launcher asks for the buckets and
so owns them: they outlive a learner that dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

import ray
from ray.actor import ActorHandle

from cluster.learning.waves import waves
from cluster.pools import ActorPool
from cluster.pools.cancellation import end_tasks
from cluster.pools.member import LateWeightsError, Member
from cluster.pools.remote_errors import resolve
from configs.errors import WeightSyncError
from configs.schema import WeightSyncConfig
from rollout.records import WeightVersion


class WeightSync(Protocol):
    """Carries weight versions from the learner to the rollout workers. It is also their pool's `LiveWeights`.

    A version is known by the learner's life and its number; lives are counted here, one more with each `restore`.
    """

    @property
    def version(self) -> WeightVersion:
        """The newest version that was published."""

    async def publish(self, ranks: Sequence[ActorHandle], number: int, pool: ActorPool) -> None:
        """Take version `number` out of the learner. When this returns, the learner may change its weights again."""

    async def restore(self, ranks: Sequence[ActorHandle], number: int) -> None:
        """Take version `number` out of a learner that begins there, and with it a life; the number may be an earlier
        one. READY workers need `deliver`."""

    async def deliver(self, pool: ActorPool) -> int:
        """Bring the published version to every READY worker; returns its number. A worker that is late is STALE when
        this returns, and catches up by itself."""

    async def catch_up(self, worker: ActorHandle) -> WeightVersion:
        """Load the published version into one worker that joins; returns the version it holds."""

    async def close(self) -> None:
        """Free the weights."""


class ObjectStoreSync:
    """Weights through Ray's object store. Works everywhere; workers may come and go."""

    def __init__(self, config: WeightSyncConfig) -> None:
        self._timeout_s = config.timeout_s
        self._version = WeightVersion()
        self._buckets: list[ray.ObjectRef] = []

    @property
    def version(self) -> WeightVersion:
        return self._version

    async def publish(self, ranks: Sequence[ActorHandle], number: int, pool: ActorPool) -> None:
        first = next(_waves_of(pool), [])
        await self.take(ranks, WeightVersion(self._version.life, number), [member.handle for member in first])

    async def restore(self, ranks: Sequence[ActorHandle], number: int) -> None:
        await self.take(ranks, WeightVersion(self._version.life + 1, number))

    async def take(
        self, ranks: Sequence[ActorHandle], version: WeightVersion, listening: Sequence[ActorHandle] = ()
    ) -> None:
        """Put `version` into the store; workers that are listening begin to load it meanwhile. Raises LearnerError when
        the learner is at another, WeightSyncError."""
        buckets: list[ray.ObjectRef] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                async for bucket in _exported(ranks, version.number):
                    for worker in listening:
                        worker.expect_weights.remote(version, len(buckets), [bucket])
                    buckets.append(bucket)
        except TimeoutError as error:
            raise WeightSyncError(
                f"weight version {version.number} was not exported within weight_sync.timeout_s {self._timeout_s:g} s"
            ) from error
        self._version, self._buckets = version, buckets

    async def deliver(self, pool: ActorPool) -> int:
        version, buckets = self._version, self._buckets

        async def update_one(member: Member) -> None:
            held = await pool.load(
                member, lambda handle: handle.update_weights.remote(version, buckets), self._timeout_s
            )
            if held is not None:
                member.health.holds(held, self._version)

        started: list[asyncio.Task[None]] = []
        try:
            for wave in _waves_of(pool):
                loading = [asyncio.create_task(update_one(member)) for member in wave]
                started += loading
                await _mostly_done(loading)
            await asyncio.gather(*started)
        finally:
            await end_tasks(started)
        return version.number

    async def catch_up(self, worker: ActorHandle) -> WeightVersion:
        if not self._buckets:
            return self._version  # nothing was published yet: these are the weights that every worker starts with
        version = self._version
        answer = asyncio.ensure_future(resolve(worker.update_weights.remote(version, self._buckets)))
        try:
            if not (await asyncio.wait({answer}, timeout=self._timeout_s))[0]:
                raise LateWeightsError(
                    f"weight version {version.number} was not loaded within weight_sync.timeout_s {self._timeout_s:g} s"
                )
            return WeightVersion(*answer.result())
        finally:
            answer.cancel()

    async def close(self) -> None:
        self._buckets = []


async def _mostly_done(loading: Sequence[asyncio.Task[None]]) -> None:
    """Until all are done, or have had twice as long as the first: a slow one is not waited for by the next wave."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await asyncio.wait(loading, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait(loading, timeout=loop.time() - begun)


def _waves_of(pool: ActorPool) -> Iterator[list[Member]]:
    return waves((member.node_id, member) for member in pool.members)


async def _exported(ranks: Sequence[ActorHandle], version: int) -> AsyncIterator[ray.ObjectRef]:
    """Buckets of `version`, each as soon as it is in the store: all ranks enter (ZeRO-3 gathers), rank 0 gives them."""
    streams = [rank.export_weights.options(num_returns="streaming").remote(version) for rank in ranks]
    for stream in streams:
        last: ray.ObjectRef | None = None
        async for reference in stream:
            if last is not None:
                yield last
            last = reference
        if last is not None:
            await last  # the end, which raises what the export raised
