"""Weight sync over NCCL: the sending end of vLLM's weight transfer.

    learner rank 0 ── broadcasts, packed ──► every worker of every engine (`rollout.vllm.weights`)

The learner's rank 0 is rank 0 of the NCCL group; the engines' workers have the ranks after it. Names, dtypes and
shapes are sent to the engines beforehand by a Ray call, in the order in which the tensors are broadcast. Needs CUDA
GPUs and vLLM; there is no test of it on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from configs.errors import WeightSyncError
from configs.library_layout import library_error


class NcclSender:
    """Rank 0 of one weight-transfer group. When a member dies, the group is unusable: close it and form a new one."""

    def __init__(self, master_address: str, master_port: int, world_size: int) -> None:
        """Returns when all `world_size` members have joined.

        Raises WeightSyncError when they cannot, LibraryError for a vLLM without this transfer.
        """
        try:
            from vllm.distributed.weight_transfer.nccl_common import trainer_init
            from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer
        except ImportError as error:
            raise library_error("vllm", f"cannot send weights over NCCL ({error})") from error

        self._broadcast = packed_nccl_broadcast_producer
        self._is_given_up = False
        rendezvous = {"master_address": master_address, "master_port": master_port, "world_size": world_size}
        try:
            self._group: Any = trainer_init(rendezvous)
        except (RuntimeError, OSError, ValueError) as error:
            raise WeightSyncError(
                f"no weight-transfer group of {world_size} at {master_address}:{master_port}: {error}"
            ) from error

    def send(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Broadcast the tensors, in order; returns when the last one has left. Raises WeightSyncError.

        NCCL waits for a dead member for ever: see `give_up`.
        """
        try:
            self._broadcast(iterator=tensors, group=self._group, src=0, post_iter_func=lambda item: item[1])
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise WeightSyncError(f"the weight broadcast failed: {error}") from error
        if self._is_given_up:
            raise WeightSyncError("the weight broadcast was given up")

    def give_up(self) -> None:
        """Have a `send` that is stuck in another thread raise; the group is of no use any more."""
        self._is_given_up = True
        self._group.destroy()  # vLLM's is ncclCommAbort, which lets go of what waits on the GPU

    def close(self) -> None:
        """Leave the group."""
        self._group.destroy()
