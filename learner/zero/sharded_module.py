"""A frozen module whose weights DeepSpeed's ZeRO-3 shards over the ranks."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from learner.zero.process_group import import_deepspeed

GATHERED_ELEMENTS: Final = 500_000_000
"""Elements that are whole on a rank at a time, at most."""
PREFETCHED_ELEMENTS: Final = 50_000_000
"""Of which so many are gathered for layers to come."""


class ShardedModule:
    """A module for forward passes without gradients. Each rank holds its part of every weight, and layer by layer they
    are gathered in each pass: all ranks must make the same calls in the same order. `init_distributed` comes first."""

    def __init__(self, module: nn.Module, *, dtype: torch.dtype, device: torch.device, offload: bool) -> None:
        """module: in `dtype`, on the CPU; it is this object's from here on, and whole on the device for a moment.
        offload: a rank keeps its part in host memory, and brings it to the device in each pass."""
        zero: dict[str, Any] = {
            "stage": 3,
            "stage3_prefetch_bucket_size": PREFETCHED_ELEMENTS,
            "stage3_max_live_parameters": GATHERED_ELEMENTS,
            "stage3_max_reuse_distance": GATHERED_ELEMENTS,
            "stage3_param_persistence_threshold": 10_000,  # as in `learner.zero.engine`
        }
        if offload:
            zero["offload_param"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
        self._engine, *_ = import_deepspeed().initialize(
            model=module.requires_grad_(False).eval(),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "steps_per_print": None,
                "bf16": {"enabled": dtype == torch.bfloat16},
                "zero_optimization": zero,
            },
        )

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass."""
        return self._engine(*args, **kwargs)

    def destroy(self) -> None:
        """Free its memory and hooks."""
        self._engine.destroy()
