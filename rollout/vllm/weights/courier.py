"""The rollout worker's end of staged weight updates: carries buckets to the stagers of an engine's vLLM workers.

    bucket ─► slot 0 │ slot 1 ─► every `rollout.vllm.weights.stager` at once

While the workers load from one slot, the next bucket is copied into the other: an update takes two buckets of memory on
its way. The messages do not pass vLLM's engine core, which would hold each of them up for a step.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import WeightSyncError
from rollout.records import BucketStream
from rollout.weights.buckets import each_bucket
from rollout.weights.manifest import UpdateCheck, WeightManifest
from rollout.weights.slots import Slot

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Courier:
    """A connection to every vLLM worker of an engine. One update at a time."""

    def __init__(self, connections: list[Connection], server: asyncio.Server) -> None:
        self._connections = connections
        self._server = server
        self._slots = (Slot(), Slot())
        self._ids = count()

    @classmethod
    async def connect(cls, llm: AsyncLLM, folder: Path) -> Courier | None:
        """None when the engine's weights cannot be staged. folder: for a socket."""
        arriving: asyncio.Queue[Connection] = asyncio.Queue()
        path = str(folder / "weights")
        server = await asyncio.start_unix_server(lambda *ends: arriving.put_nowait(ends), path)
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

    async def drop(self) -> None:
        """Free what is staged, or the old weights after a swap."""
        await self._tell({"do": "drop"})

    def close(self) -> None:
        """Safe to call twice."""
        self._server.close()
        for _, writer in self._connections:
            writer.close()
        for slot in self._slots:
            slot.close()

    async def _tell(self, message: Mapping[str, Any]) -> None:
        number = next(self._ids)
        line = json.dumps({"id": number, **message}).encode() + b"\n"
        answers = await asyncio.gather(*(_ask(connection, number, line) for connection in self._connections))
        if errors := list(filter(None, answers)):
            raise WeightSyncError(f"the engine could not stage new weights: {errors[0]}")


async def _ask(connection: Connection, number: int, line: bytes) -> str | None:
    """Send a message; the error that is answered, if any. Answers to calls that were cancelled are passed over."""
    reader, writer = connection
    try:
        writer.write(line)
        await writer.drain()
        while answer := await reader.readline():
            told = json.loads(answer)
            if told["id"] == number:
                error: str | None = told["error"]
                return error
    except OSError as error:
        raise WeightSyncError(f"a process of the vLLM engine is gone: {error}") from error
    raise WeightSyncError("a process of the vLLM engine ended while its weights were staged")
