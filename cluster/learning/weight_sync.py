"""Weight sync: version n of the learner's weights reaches every rollout worker.

    learner ranks ─► publish(n) ─► [store | collective] ─► every READY rollout worker
                                        └────────────────► a worker that joins later: catch_up

`ObjectStoreSync` is pull-based: each worker fetches the buckets from Ray's object store at its own pace, so that a
slow, dead or joining worker holds up nobody else's copy. Nodes are asked to in waves (`waves.py`), so that those that
have a version serve it to the next ones. The first wave loads bucket k while the learner exports k + 1: each bucket is
told to it at once, as a hint that may be lost, and `deliver` tells all of them. The launcher asks for the buckets and
so owns them: they outlive a learner that dies.

Buckets that one worker finds damaged or lost are of no use to the next one either: the learner exports the version once
more, whole. Where it has made another step meanwhile, or has died, workers wait for the version that comes of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayError

from cluster.learning.waves import waves
from cluster.pools import ActorPool
from cluster.pools.cancellation import end_tasks
from cluster.pools.member import LateWeightsError, LostWeightsError, Member
from cluster.pools.remote_errors import raised_by, resolve, told
from configs.errors import BicotError, WeightSyncError
from configs.schema import WeightSyncConfig
from rollout.records import WeightVersion
from rollout.weights.delta import DeltaSummary, UnfitDeltaError

_LONGEST_CHANGES: Final = 0.5
"""Bytes of changes since a version that was sent whole, over its own, after which the next one is."""


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

    @property
    def figures(self) -> Mapping[str, float]:
        """Metrics of the version that was published last, see `cluster.reports.metrics`."""

    async def close(self) -> None:
        """Free the weights."""


class _Sent(NamedTuple):
    """A version in the store, whole or as changes of the one before."""

    version: WeightVersion
    buckets: list[ray.ObjectRef]
    num_bytes: int


class ObjectStoreSync:
    """Weights through Ray's object store. Works everywhere; workers may come and go."""

    def __init__(self, config: WeightSyncConfig, note: Callable[[str], None] = lambda text: None) -> None:
        self._timeout_s = config.timeout_s
        self._sends_changes = config.delta
        self._note = note
        self._ranks: tuple[ActorHandle, ...] = ()
        self._is_next_whole = False
        self._version = WeightVersion()
        self._sent: list[_Sent] = []
        """What makes up `version`: a whole one, then those of which each is the changes of the one before it."""
        self._summary: DeltaSummary | None = None
        self._damage = ""
        """Why that is of no use to any worker."""
        self._taking = asyncio.Lock()

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
        async with self._taking:
            await self._take(ranks, version, listening)

    async def _take(
        self, ranks: Sequence[ActorHandle], version: WeightVersion, listening: Sequence[ActorHandle]
    ) -> None:
        base = self._base_for(version)
        buckets: list[ray.ObjectRef] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                async for bucket in self._exported(ranks, version, base):
                    for worker in listening:
                        worker.expect_weights.remote(version, len(buckets), [bucket], base)
                    buckets.append(bucket)
        except TimeoutError as error:
            raise WeightSyncError(
                f"weight version {version.number} was not exported within weight_sync.timeout_s {self._timeout_s:g} s"
            ) from error
        summary = self._summary
        is_whole = summary is None or summary.is_whole
        self._ranks, self._version, self._is_next_whole = tuple(ranks), version, False
        self._sent = [*([] if is_whole else self._sent), _Sent(version, buckets, summary.num_bytes if summary else 0)]
        if is_whole:
            self._damage = ""

    def _base_for(self, version: WeightVersion) -> WeightVersion | None:
        """The version of which `version` is best sent as changes; None: it is best sent whole."""
        is_unfit = self._is_next_whole or self._damage or version.life != self._version.life
        if not self._sends_changes or not self._sent or is_unfit:
            return None
        whole, *changes = self._sent
        # A worker that joins fetches all of them.
        is_long = sum(sent.num_bytes for sent in changes) > _LONGEST_CHANGES * whole.num_bytes
        return None if is_long else self._version

    async def deliver(self, pool: ActorPool) -> int:
        version = self._version

        async def update_one(member: Member) -> None:
            held = await pool.load(member, self._load, self._timeout_s)
            if held is not None:
                member.health.holds(held, self._version)
            else:
                self._is_next_whole = True  # should changes have been at fault, no other worker is lost to them

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
        if not self._sent:
            return self._version  # nothing was published yet: these are the weights that every worker starts with
        version = self._version
        loading = asyncio.ensure_future(self._load(worker))
        try:
            if not (await asyncio.wait({loading}, timeout=self._timeout_s))[0]:
                raise LateWeightsError(
                    f"weight version {version.number} was not loaded within weight_sync.timeout_s {self._timeout_s:g} s"
                )
            return loading.result()
        finally:
            loading.cancel()

    async def _load(self, worker: ActorHandle) -> WeightVersion:
        """Have a worker load the published version; what it finds damaged or lost is sent again before.

        Raises what the worker raises, and LostWeightsError."""
        sent = self._sent
        try:
            if not self._damage:
                return WeightVersion(*await resolve(worker.update_weights.remote(*self._arguments())))
        except Exception as error:
            if not isinstance(raised_by(error), UnfitDeltaError | ObjectLostError):
                raise
            if not self._damage and self._sent[:1] == sent[:1]:  # else all of it has been sent anew meanwhile
                self._damage = f"weight version {self._version.number} is damaged or lost: {told(error)}"
                self._note(f"{self._damage}; the learner sends its weights again, whole")
        await self._send_whole()
        return WeightVersion(*await resolve(worker.update_weights.remote(*self._arguments())))

    async def _send_whole(self) -> None:
        """Have the learner export the published version again, as a whole, where nobody else has."""
        async with self._taking:
            if self._damage:
                try:
                    await self._take(self._ranks, self._version, ())
                except (BicotError, RayError) as error:
                    raise LostWeightsError(f"{self._damage}; it cannot be had again: {told(error)}") from error

    @property
    def figures(self) -> Mapping[str, float]:
        summary = self._summary
        if summary is None:
            return {}
        share = {} if summary.is_whole else {"sync/changed_share": summary.num_changed / max(1, summary.num_values)}
        return {"sync/sent_mb": summary.num_bytes / 1e6, **share}

    async def close(self) -> None:
        self._sent = []

    def _arguments(self) -> tuple[Any, ...]:
        """Of `RolloutActor.update_weights`, for the published version."""
        *earlier, last = self._sent or [_Sent(self._version, [], 0)]
        return last.version, last.buckets, [(each.version, each.buckets) for each in earlier]

    async def _exported(
        self, ranks: Sequence[ActorHandle], version: WeightVersion, base: WeightVersion | None
    ) -> AsyncIterator[ray.ObjectRef]:
        """Buckets of `version`, each as soon as it is in the store: all ranks enter (ZeRO-3 gathers), rank 0 gives
        them."""

        def begin(rank: ActorHandle) -> Any:
            if self._sends_changes:
                return rank.export_changes.options(num_returns="streaming").remote(version, base)
            return rank.export_weights.options(num_returns="streaming").remote(version.number)

        summary: DeltaSummary | None = None
        for index, stream in enumerate([begin(rank) for rank in ranks]):
            last: ray.ObjectRef | None = None
            async for reference in stream:
                if last is not None:
                    yield last
                last = reference
            if last is not None:
                end = await last  # which raises what the export raised
                if self._sends_changes and index == 0:
                    summary = end
        self._summary = summary


async def _mostly_done(loading: Sequence[asyncio.Task[None]]) -> None:
    """Until all are done, or have had twice as long as the first: a slow one is not waited for by the next wave."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await asyncio.wait(loading, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait(loading, timeout=loop.time() - begun)


def _waves_of(pool: ActorPool) -> Iterator[list[Member]]:
    return waves((member.node_id, member) for member in pool.members)
