"""Memory of one process that others of its machine open by a handle: of a GPU by CUDA IPC, of the host by a path.

    LentMemory.room ─► a bucket is written ─► handle() ── as JSON ──► open_lent(handle) ─► the same bytes, not copied

Whoever opens a GPU's memory may sit on another GPU of the machine, if the two reach each other. It stays mapped as long
as the tensor that `open_lent` returns, also when its owner is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from rollout.weights.shared_memory import SharedMemory, open_shared


class LentMemory:
    """Room for one bucket at a time. Keep it as long as the process lends: PyTorch gives memory of a GPU back only when
    everyone who was given a handle has let go of it, which a process that was killed never tells."""

    def __init__(self, device: torch.device) -> None:
        """device: with its index."""
        self._device = device
        self._host: SharedMemory | None = SharedMemory() if device.type == "cpu" else None
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self.generation = 0
        """Changes when the memory is another, and older handles are of no more use."""

    def room(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes] on the device, over what was there before. Raises WeightSyncError where the host's memory
        is short."""
        if num_bytes > self._memory.numel():
            if self._host is None:
                self._memory = self._memory.new_empty(0)  # before the larger one is there
                self._memory = self._memory.new_empty(num_bytes)
            else:
                self._host.reserve(num_bytes)
                self._memory = torch.from_numpy(self._host.bytes)
            self.generation += 1
        return self._memory[:num_bytes]

    def handle(self) -> dict[str, Any]:
        """For one that opens the memory, once; all of it can be written as JSON."""
        if self._host is not None:
            return {"path": self._host.path, "size": self._memory.numel()}
        from torch.multiprocessing.reductions import reduce_tensor

        _, arguments = reduce_tensor(self._memory)
        plain = [{"hex": each.hex()} if isinstance(each, bytes) else each for each in arguments[_NUM_TYPES:]]
        return {"cuda": plain, "size": self._memory.numel()}

    def close(self) -> None:
        """Give the memory back; safe to call twice."""
        self._memory = self._memory.new_empty(0)
        if self._host is not None:
            self._host.close()


_NUM_TYPES: Final = 6
"""Arguments of PyTorch's `rebuild_cuda_tensor` that are types and shape, which both ends know."""


def open_lent(handle: Mapping[str, Any], device: torch.device) -> Tensor:
    """uint8: another process' memory, on `device`. Raises OSError, and RuntimeError of CUDA, when it cannot be opened:
    its process is gone, or its GPU out of reach."""
    if "path" in handle:
        return torch.from_numpy(open_shared(handle["path"], handle["size"]))
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    _, *rest = (bytes.fromhex(each["hex"]) if isinstance(each, Mapping) else each for each in handle["cuda"])
    types = (Tensor, (handle["size"],), (1,), 0, torch.storage.TypedStorage, torch.uint8)
    # The GPU has a number of its own in each process.
    memory: Tensor = rebuild_cuda_tensor(*types, device.index, *rest)
    return memory
