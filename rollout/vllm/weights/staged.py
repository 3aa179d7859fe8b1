"""A second set of a model's weights, loaded and converted beside the one that samples, then swapped with it.

    live layer ──► twin: the same object without its weights ── load_weights, process_weights_after_loading ──► swap

A twin shares everything with its layer but the tensors, so vLLM's own loaders and conversions fill it as they filled
the layer, tensor-parallel shards and repacked kernels included. Loading may run in a thread of its own. The memory
that this takes is one more copy of the weights, in the memory of the host.

Twins are made of layers without quantization only: what converts a quantized layer may need the device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import (
    get_numel_loaded,
    materialize_meta_tensor,
    to_meta_tensor,
)
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from rollout.vllm.model.adapters import StagedAdapters

_TENSORS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
PinnedMemory = dict[tuple[int, str], torch.Tensor]
"""Page-locked memory for the weights of layers on a GPU, by layer and parameter: kept from one update to the next."""


@dataclass(slots=True)
class _Twin:
    live: nn.Module
    staged: nn.Module
    missing: int
    """Values that have not come; all of them: the layer is not part of this update."""
    total: int
    converted: set[str] = field(default_factory=set)
    """Attributes that the conversion has set, besides parameters."""


class StagedWeights:
    """One update on its way into a model. `load` any number of times, `finish`, then `swap`."""

    def __init__(self, model: Any, pinned: PinnedMemory) -> None:
        """model: as vLLM's loader left it; it goes on sampling. pinned: of the same model's updates."""
        self._pinned = pinned
        self._twins: list[_Twin] = []
        self._model: Any = self._twin_of(model)
        adapters = getattr(model, "adapters", None)
        self._adapters = None if adapters is None else StagedAdapters(adapters)
        self._model.__dict__["adapters"] = self._adapters

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Tensors under their names in the checkpoint; nothing of them is kept."""
        self._model.load_weights(weights)

    @torch.no_grad()
    def finish(self) -> None:
        """Everything has been loaded. Layers that are padded are filled in part only, and are converted now."""
        for twin in self._twins:
            if 0 < twin.missing < twin.total:
                self._convert(twin)

    @torch.no_grad()
    def swap(self) -> None:
        """The model gets the staged weights, and this the old ones, which are freed with it. Nothing may be computed
        meanwhile."""
        on_device = False
        if self._adapters is not None:
            self._adapters.swap_in()
        for twin in self._twins:
            if twin.missing:
                continue
            live, staged = twin.live.__dict__, twin.staged.__dict__
            for name in twin.converted:
                live[name], staged[name] = staged[name], live.get(name)
            for name, parameter in _parameters(twin.live).items():
                other = _parameters(twin.staged)[name]
                if parameter.is_cpu:
                    parameter.data, other.data = other.data, parameter.data
                else:  # captured graphs know its address
                    parameter.data.copy_(other.data, non_blocking=True)
                    on_device = True
        if on_device:
            torch.accelerator.synchronize()

    def _twin_of(self, module: nn.Module) -> nn.Module:
        twin = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        for name in _TENSORS:
            twin.__dict__[name] = type(module.__dict__[name])(module.__dict__[name])
        for name, child in module._modules.items():
            if child is not None:
                twin._modules[name] = self._twin_of(child)
        parameters = get_layerwise_info(module).restore_metadata[0]
        if parameters:
            self._empty(module, twin, parameters)
        return twin

    def _empty(self, live: nn.Module, staged: nn.Module, parameters: dict[str, torch.Tensor]) -> None:
        """Give a twin its layer's parameters as they were before their conversion, without memory."""
        metadata = {name: restore_layer_refs(to_meta_tensor(p), staged) for name, p in parameters.items()}
        # vLLM keeps no such record of a bias, which no conversion touches.
        metadata |= {name: to_meta_tensor(p) for name, p in _parameters(live).items() if name not in metadata}
        total = sum(parameter.numel() for parameter in metadata.values())
        twin = _Twin(live, staged, total, total)
        self._twins.append(twin)
        staged.__dict__["_parameters"] = metadata
        for name, parameter in metadata.items():
            parameter.weight_loader = self._loader(twin, name, getattr(parameter, "weight_loader", None))

    def _loader(self, twin: _Twin, name: str, original: Callable[..., Any] | None) -> Callable[..., Any]:
        """`original`, into memory that is there from its first call on; after the last call the layer is converted."""
        load = original or default_weight_loader
        signature = inspect.signature(load)

        @wraps(load)
        def load_staged(_: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            parameter: Any = twin.staged._parameters[name]
            if parameter.is_meta:
                parameter = twin.staged._parameters[name] = materialize_meta_tensor(parameter)
            arguments = signature.bind(parameter, *args, **kwargs)
            arguments.apply_defaults()
            loaded, result = get_numel_loaded(load, arguments)
            twin.missing -= loaded
            if twin.missing <= 0:
                self._convert(twin)
            return result

        return load_staged

    def _convert(self, twin: _Twin) -> None:
        twin.missing = 0
        method = getattr(twin.staged, "quant_method", None)
        if isinstance(method, QuantizeMethodBase):
            before = dict(twin.staged.__dict__)
            method.process_weights_after_loading(twin.staged)
            after = twin.staged.__dict__
            twin.converted = {name for name, value in after.items() if before.get(name) is not value}
        for name, parameter in _parameters(twin.live).items():
            if parameter.is_cpu:
                continue
            staged = _parameters(twin.staged)[name]
            key = (id(twin.live), name)
            if key not in self._pinned:
                self._pinned[key] = torch.empty_like(staged.data, device="cpu", pin_memory=True)
            staged.data = self._pinned[key].copy_(staged.data)


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
