"""How new weights get into a running engine: between two tokens, with as short a pause as there can be.

staged:  buckets, or a broadcast ─► Courier ─► beside the old weights, while sampling goes on
         pause ─► swap ─► resume ─► the old weights are freed
else:    pause ─► buckets ─► over the old weights ─► resume
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import WeightSyncError
from rollout.records import BucketStream, GroupPlace, TensorInfo
from rollout.vllm.weights.courier import Courier
from rollout.weights import WeightManifest
from rollout.weights.buckets import each_bucket
from rollout.weights.slots import Slot

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class EngineWeights:
    """The weights of one running `AsyncLLM`, and their version."""

    def __init__(self, llm: AsyncLLM, manifest: WeightManifest, courier: Courier | None, recomputes: bool) -> None:
        """courier: None for an engine whose weights are not staged. recomputes: whether contexts are computed again
        under new weights."""
        self._llm = llm
        self._manifest = manifest
        self._courier = courier
        self._recomputes = recomputes
        self.version = 0
        self.lock = asyncio.Lock()
        """Held while sampling is paused."""
        self._staging = asyncio.Lock()
        self.broken: str | None = None
        """Why the engine must not go on: it may hold half of a version."""
        self.paused_s = 0.0
        """Seconds that sampling has stood still for new weights, all updates together."""

    @classmethod
    async def of(
        cls, llm: AsyncLLM, manifest: WeightManifest, staged: bool, folder: Path, recomputes: bool
    ) -> EngineWeights:
        """Of an engine that was just started. staged: whether its weights may be, if they can; folder: for a socket."""
        await llm.update_weight_version("0")
        return cls(llm, manifest, await Courier.connect(llm, folder) if staged else None, recomputes)

    @property
    def context_version(self) -> int | None:
        """See `SequenceResult`, of a request that is submitted now."""
        return None if self._recomputes else self.version

    @property
    def prefix_key(self) -> str:
        """What must be equal for a prompt's prefix to be found in the cache, where that holds keys and values of
        several versions."""
        return "" if self._recomputes else str(self.version)

    async def update(self, version: int, buckets: BucketStream) -> None:
        """See `Engine.update_weights`."""
        await (self._stage(version, buckets) if self._courier else self._load(version, buckets))

    @property
    def are_staged(self) -> bool:
        return self._courier is not None

    async def join(self, place: GroupPlace) -> None:
        """See `rollout.engine.CollectiveReceiver`, as the next two."""
        await self._staging_courier.join(place)

    async def receive(self, version: int, layout: Sequence[TensorInfo], bucket_bytes: int) -> None:
        self._manifest.check_tensors((name, tuple(shape), dtype) for name, dtype, shape in layout)
        async with self._staged(version) as courier:
            await courier.receive(layout, bucket_bytes)

    async def leave(self) -> None:
        await self._staging_courier.leave()

    def close(self) -> None:
        """Safe to call twice."""
        if self._courier is not None:
            self._courier.close()

    @property
    def _staging_courier(self) -> Courier:
        if self._courier is None:
            raise WeightSyncError("the engine's weights are not staged")
        return self._courier

    @asynccontextmanager
    async def _staged(self, version: int) -> AsyncIterator[Courier]:
        """Swap in what the body has staged."""
        courier = self._staging_courier
        async with self._staging:
            yield courier
            async with self.lock, self._paused(version):
                # At once: the engine core does one after the other, and each answer is a way there and back.
                swapping = self._llm.collective_rpc("swap_staged_weights")
                await asyncio.gather(swapping, self._llm.update_weight_version(str(version)))
            await courier.drop()

    async def _stage(self, version: int, buckets: BucketStream) -> None:
        async with self._staged(version) as courier:
            await courier.stage(buckets, self._manifest)

    async def _load(self, version: int, buckets: BucketStream) -> None:
        whole = [bucket async for bucket in each_bucket(buckets)]
        self._manifest.check_buckets(whole)
        async with self.lock, self._loading(version):
            slot = Slot()
            try:
                for bucket in whole:
                    contents = await asyncio.to_thread(slot.write, bucket)
                    await self._take(bucket.names, bucket.dtypes, bucket.shapes, asdict(contents))
            finally:
                slot.close()

    @asynccontextmanager
    async def _paused(self, version: int) -> AsyncIterator[None]:
        """Pause, let the body replace the weights, resume. `version` holds from then on."""
        started_s = time.monotonic()
        try:
            try:
                # Nothing is computed until the resume, so caches cleared here stay free of the old weights' keys. Not
                # vLLM's own `pause_generation`: it then sleeps for 20 ms, for callers who want to see the last outputs
                # before it returns. Here the engine core tells of each token which version has sampled it.
                await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=self._recomputes)
                try:
                    yield
                except BaseException:
                    self.broken = f"the vLLM engine may hold half of weight version {version}; start a new one"
                    raise
            finally:
                await self._llm.resume_generation()
                self.paused_s += time.monotonic() - started_s
        except WeightSyncError:
            raise
        except Exception as error:
            raise WeightSyncError(f"weight version {version} was not loaded: {error}") from error
        self.version = version

    @asynccontextmanager
    async def _loading(self, version: int) -> AsyncIterator[None]:
        """`_paused`, with the model open for vLLM's own loading."""
        async with self._paused(version):
            await self._llm.start_weight_update()
            yield
            await self._llm.finish_weight_update(str(version))

    async def _take(
        self,
        names: Sequence[str],
        dtypes: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        slot: dict[str, Any],
    ) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        update_info = {
            "names": list(names),
            "dtype_names": list(dtypes),
            "shapes": [list(shape) for shape in shapes],
            "slot": slot,
        }
        try:
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))
        except Exception as error:
            raise WeightSyncError(f"tensors '{names[0]}' to '{names[-1]}' were not loaded: {error}") from error
