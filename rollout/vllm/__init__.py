"""All that touches vLLM's internals: the guided Janus model, its sampler, its weight updates, the engine."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rollout.vllm.engine import VllmEngine as VllmEngine
    from rollout.vllm.settings import context_length as context_length

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "engine": ["VllmEngine"],
        "settings": ["context_length"],
    },
)
