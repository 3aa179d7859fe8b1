"""Copies of tensors in host memory, taken at one moment to be written to a disk while training goes on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class HostCopies:
    """Named copies of tensors. Their memory is used again the next time: to get gigabytes from the system, page by
    page, takes longer than to copy them."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        """Contiguous, on the CPU, and none shares memory with another, as safetensors asks for."""

    @torch.no_grad()
    def take(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy these, in place of all that was held before; each is read before the next is asked for."""
        before, self.tensors = self.tensors, {}
        for name, tensor in tensors:
            copy = before.pop(name, None)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype)
            self.tensors[name] = copy.copy_(tensor)
