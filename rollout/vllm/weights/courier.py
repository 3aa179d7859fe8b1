"""The rollout worker's end of staged weight updates: carries buckets to the stagers of an engine's vLLM workers.

    bucket ─► slot 0 │ slot 1 ─► every `rollout.vllm.weights.stager` at once

While the workers load from one slot, the next bucket is copied into the other: an update takes two buckets of memory on
its way. The messages do not pass vLLM's engine core, which would hold each of them up for a step.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import WeightSyncError
from rollout.records import BucketStream, GroupPlace, TensorInfo
from rollout.weights.buckets import each_bucket
from rollout.weights.manifest import UpdateCheck, WeightManifest
from rollout.weights.slots import Slot

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class Connection:
    """To one stager. Messages may be on their way at once; each is answered by its number."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._awaited: dict[int, asyncio.Future[str | None]] = {}
        self._ids = count()
        self._ended: WeightSyncError | None = None
        self._reading = asyncio.create_task(self._read(reader), name="answers of a stager")

    async def ask(self, message: Mapping[str, Any]) -> str | None:
        """Send a message; the error that is answered, if any. Raises WeightSyncError when the process is gone."""
        if self._ended is not None:
            raise self._ended
        number = next(self._ids)
        answer = self._awaited[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(json.dumps({"id": number, **message}).encode() + b"\n")
            await self._writer.drain()
            return await answer
        except OSError as error:
            raise WeightSyncError(f"a process of the vLLM engine is gone: {error}") from error
        finally:
            del self._awaited[number]

    def close(self) -> None:
        self._reading.cancel()
        self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        why = "a process of the vLLM engine ended while its weights were staged"
        try:
            while line := await reader.readline():
                told = json.loads(line)
                waiting = self._awaited.get(told["id"])  # None: the call was cancelled
                if waiting is not None and not waiting.done():
                    waiting.set_result(told["error"])
        except OSError as error:
            why = f"a process of the vLLM engine is gone: {error}"
        self._ended = WeightSyncError(why)
        for waiting in self._awaited.values():
            if not waiting.done():
                waiting.set_exception(self._ended)


class Courier:
    """A connection to every vLLM worker of an engine. One update at a time."""

    def __init__(self, connections: list[Connection], server: asyncio.Server) -> None:
        self._connections = connections
        self._server = server
        self._slots = (Slot(), Slot())

    @classmethod
    async def connect(cls, llm: AsyncLLM, folder: Path) -> Courier | None:
        """None when the engine's weights cannot be staged. folder: for a socket."""
        arriving: asyncio.Queue[Connection] = asyncio.Queue()
        path = str(folder / "weights")
        server = await asyncio.start_unix_server(lambda *ends: arriving.put_nowait(Connection(*ends)), path)
        answers = await llm.collective_rpc("connect_stager", args=(path,))
        if not all(answers):
            server.close()
            return None
        return cls([await arriving.get() for _ in answers], server)

    async def stage(self, buckets: BucketStream, manifest: WeightManifest) -> None:
        """Bring an update to all workers, and wait until it can be swapped in. Raises WeightSyncError; then nothing of
        it is left."""
        check = UpdateCheck(manifest)
        loading: asyncio.Task[None] | None = None
        try:
            turn = 0
            async for bucket in each_bucket(buckets):
                check.add(bucket)
                contents = await asyncio.to_thread(self._slots[turn % 2].write, bucket)
                if loading is not None:
                    await loading
                loading = asyncio.create_task(self._tell({"do": "load", "contents": asdict(contents)}))
                turn += 1
            if loading is not None:
                await loading
            check.finish()
            await self._tell({"do": "finish"})
        except BaseException:
            if loading is not None:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
            with suppress(WeightSyncError):  # of workers that are gone, with what they had staged
                await self.drop()
            raise

    async def join(self, place: GroupPlace) -> None:
        """All workers join a weight-transfer group, with ranks from `place.rank` on, and leave the one before.

        Raises WeightSyncError."""
        places = (replace(place, rank=place.rank + index) for index in range(len(self._connections)))
        await self._tell_each([{"do": "join", "place": asdict(place)} for place in places])

    async def receive(self, layout: Sequence[TensorInfo], bucket_bytes: int) -> None:
        """`stage` from the group; whoever calls has checked the layout."""
        try:
            await self._tell({"do": "receive", "layout": layout, "bucket_bytes": bucket_bytes})
        except BaseException:
            with suppress(WeightSyncError):
                await self.leave()
                await self.drop()
            raise

    async def leave(self) -> None:
        """Break off what is received, and leave the group."""
        await self._tell({"do": "leave"})

    async def drop(self) -> None:
        """Free what is staged, or the old weights after a swap."""
        await self._tell({"do": "drop"})

    def close(self) -> None:
        """Safe to call twice."""
        self._server.close()
        for connection in self._connections:
            connection.close()
        for slot in self._slots:
            slot.close()

    async def _tell(self, message: Mapping[str, Any]) -> None:
        await self._tell_each([message] * len(self._connections))

    async def _tell_each(self, messages: Sequence[Mapping[str, Any]]) -> None:
        asking = (connection.ask(message) for connection, message in zip(self._connections, messages, strict=True))
        if errors := list(filter(None, await asyncio.gather(*asking))):
            raise WeightSyncError(f"the engine could not stage new weights: {errors[0]}")
