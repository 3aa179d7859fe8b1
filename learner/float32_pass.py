"""Forward passes of a bfloat16 policy in float32, one module's weights at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def computing_in_float32(policy: nn.Module) -> Iterator[None]:
    """Within the context, forward passes of `policy` without gradients compute in float32; the parameters keep their
    values and precision, and a module's are held in float32 only while it runs.

    Not for a module whose parameters ZeRO-3 has partitioned.
    """
    handles = [
        handle
        for module in policy.modules()
        if any(True for _ in module.parameters(recurse=False))
        for handle in _Float32Weights(module).hooks()
    ]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Float32Weights:
    """Gives one module's own parameters in float32 to its forward pass, and takes them back after it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._kept: list[tuple[nn.Parameter, torch.Tensor]] = []

    def hooks(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        yield self._module.register_forward_pre_hook(self._widen)
        yield self._module.register_forward_hook(self._restore, always_call=True)

    def _widen(self, module: nn.Module, inputs: object) -> None:
        self._kept = [(parameter, parameter.data) for parameter in module.parameters(recurse=False)]
        for parameter, data in self._kept:
            parameter.data = data.float()

    def _restore(self, module: nn.Module, inputs: object, outputs: object) -> None:
        for parameter, data in self._kept:
            parameter.data = data
        self._kept = []
