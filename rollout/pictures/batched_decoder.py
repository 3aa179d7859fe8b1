"""Dynamic batching for the VQ decoder: pictures of many groups are decoded together, in a thread.

    decode(codes) ─► open batch ──(the decoder is free)──► closed, decoded in a thread ─► each its picture
                        ▲ pictures that come meanwhile join the next one

A batch waits only until the decoder is free. A single picture is decoded at once; under load, batches grow up to
`batch_size`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rollout.records import Int32Array, UInt8Array


@dataclass(slots=True, eq=False)
class _Batch:
    rows: list[Int32Array] = field(default_factory=list)
    pictures: asyncio.Task[UInt8Array] | None = None


class BatchedDecoder:
    """Gathers single pictures for a decoder of batches. Lives in one event loop."""

    def __init__(self, decode_batch: Callable[[Int32Array], UInt8Array], batch_size: int) -> None:
        """decode_batch: int32 [B, N_image] to uint8 [B, height, width, 3], B at most batch_size; one call at a time."""
        self._decode_batch = decode_batch
        self._batch_size = batch_size
        self._decoder_is_free = asyncio.Lock()
        self._open: _Batch | None = None

    async def decode(self, image_ids: Int32Array) -> UInt8Array:
        """uint8 [height, width, 3]: the picture of `image_ids`, int32 [N_image].

        Raises what the decoder raises, at every picture of the failing batch.
        """
        batch = self._open
        if batch is None:
            batch = self._open = _Batch()
            batch.pictures = asyncio.create_task(self._run(batch))
        index = len(batch.rows)
        batch.rows.append(image_ids)
        if len(batch.rows) == self._batch_size:
            self._open = None
        assert batch.pictures is not None
        # Shielded: who gives up on its picture must not cancel those of others.
        pictures = await asyncio.shield(batch.pictures)
        return pictures[index]

    async def _run(self, batch: _Batch) -> UInt8Array:
        async with self._decoder_is_free:
            if self._open is batch:
                self._open = None
            return await asyncio.to_thread(self._decode_batch, np.stack(batch.rows))
