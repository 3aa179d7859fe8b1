"""vLLM's attention on a CPU by its two kernels alone.

    query, key, value [T, H d] ─┬─► keys and values written to the KV cache ─► attention over the cache ─► [T, H d]
                                └─ slots, block table, lengths: vLLM's forward context

vLLM comes to the same kernels through a custom operation, a look-up of the layer by its name, a backend's two methods
and new views of the cache, for each of both kernels: in a small model that takes as long as a third of the kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention

from configs.library_layout import require_attributes

_LAYER_PARTS = ("kv_cache", "layer_name", "head_size", "_k_scale_float", "_v_scale_float")
_KERNEL_SETTINGS = ("scale", "sliding_window", "kv_cache_dtype")
_NO_TENSOR, _NO_SOFTCAP = None, 0.0


class CpuAttention:
    """In the place of `Attention`, of a decoder without sinks, softcap and ALiBi. Not under torch.compile."""

    def __init__(self, attention: Attention) -> None:
        require_attributes("vllm", attention, _LAYER_PARTS, "its attention layer")
        require_attributes("vllm", attention.impl, _KERNEL_SETTINGS, "its attention on a CPU")
        self._attention: Any = attention
        self._cache: torch.Tensor | None = None
        self._keys_and_values: tuple[torch.Tensor, ...] = ()

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[T, H d] of [T, H d], [T, H_kv d], [T, H_kv d]."""
        attention = self._attention
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # a trial run without a cache
            output: torch.Tensor = attention(query, key, value)
            return output
        of_layer = metadata[attention.layer_name]
        impl, size = attention.impl, attention.head_size
        query, key, value = (heads.view(heads.shape[0], -1, size) for heads in (query, key, value))
        key_cache, value_cache = self._caches()
        scales = attention._k_scale_float, attention._v_scale_float, impl.kv_cache_dtype
        kernels = torch.ops._C
        kernels.cpu_attn_reshape_and_cache(
            key, value, key_cache, value_cache, of_layer.slot_mapping, attention.isa, *scales
        )
        output = torch.empty_like(query)
        kernels.cpu_attention_with_kv_cache(
            query, key_cache, value_cache, output, of_layer.query_start_loc, of_layer.seq_lens, impl.scale,
            of_layer.causal, _NO_TENSOR, impl.sliding_window, of_layer.block_table, _NO_SOFTCAP,
            of_layer.scheduler_metadata, _NO_TENSOR, _NO_TENSOR, *scales,
        )  # fmt: skip
        return output.view(output.shape[0], -1)

    def _caches(self) -> tuple[torch.Tensor, ...]:
        """Keys and values of [blocks, H_kv, 2 tokens a block, d]; views of vLLM's cache, which it may exchange."""
        cache = self._attention.kv_cache
        if cache is not self._cache:
            num_blocks, num_heads, block_size, _ = cache.shape
            self._keys_and_values = cache.view(num_blocks, num_heads, 2 * block_size, -1).chunk(2, dim=2)
            self._cache = cache
        return self._keys_and_values
