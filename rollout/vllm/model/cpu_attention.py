"""vLLM's attention on a CPU by its two kernels alone, to which each stream is a sequence of its own.

    tokens [T] of B sequences ─► rows [T + n]: all tokens in the first stream, then those that draw in the second
    query, key, value of rows ─┬─► keys and values written to the KV cache ─► attention over the cache ─► of rows
                               └─ slots, block table, lengths of rows: `StreamRows`, made once a forward pass

vLLM comes to the same kernels through a custom operation, a look-up of the layer by its name, a backend's two methods
and new views of the cache, for each of both kernels: in a small model that takes as long as a third of the kernels.

A block of vLLM's holds the heads of all streams, one behind the other. So the same memory is S blocks of one stream
each: block b is block b S + s of stream s. A row that writes text needs no second stream, and is not computed in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm import envs
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention

from configs.library_layout import require_attributes

_LAYER_PARTS = (
    "kv_cache", "layer_name", "head_size", "dtype", "num_heads", "num_kv_heads", "_k_scale_float", "_v_scale_float",
)  # fmt: skip
_KERNEL_SETTINGS = ("scale", "sliding_window", "kv_cache_dtype")
_NO_TENSOR, _NO_SOFTCAP, _IS_CAUSAL = None, 0.0, True


@dataclass(frozen=True, slots=True)
class _Sequences:
    """Where the rows of a forward pass lie in the KV cache, as the kernels take it; n sequences, the streams' own."""

    slots: torch.Tensor
    """int64 [rows]"""
    block_table: torch.Tensor
    """int32 [n, blocks]"""
    starts: torch.Tensor
    """int32 [n + 1]: of a sequence's rows."""
    lengths: torch.Tensor
    """int32 [n], with these rows."""
    plan: torch.Tensor
    """The kernel's own, how it divides its work."""


@dataclass(frozen=True, slots=True)
class StreamRows:
    """The rows of a forward pass over T tokens in S streams."""

    num_tokens: int
    num_streams: int
    drawing: torch.Tensor | None
    """int64 [n]: the tokens that are in the second stream, too; None: all."""
    sequences: _Sequences | None
    """None in a trial run without a cache."""

    def of_second(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """[n, …] of [T, …]: of the tokens that are in the second stream."""
        return of_tokens if self.drawing is None else of_tokens[self.drawing]

    def by_token(self, of_rows: torch.Tensor) -> torch.Tensor:
        """[T, S d] of [rows, d], 0 where a token has no second row."""
        if self.drawing is None:
            streams = of_rows.view(self.num_streams, self.num_tokens, -1)
            return streams.transpose(0, 1).reshape(self.num_tokens, -1)
        both = of_rows.new_zeros(self.num_tokens, self.num_streams, of_rows.shape[-1])
        both[:, 0] = of_rows[: self.num_tokens]
        both[self.drawing, 1] = of_rows[self.num_tokens :]
        return both.view(self.num_tokens, -1)


class CpuAttention:
    """In the place of `Attention`, of a decoder without sinks, softcap and ALiBi. Not under torch.compile."""

    def __init__(self, attention: Attention, num_streams: int) -> None:
        """attention: with the heads of all streams."""
        require_attributes("vllm", attention, _LAYER_PARTS, "its attention layer")
        require_attributes("vllm", attention.impl, _KERNEL_SETTINGS, "its attention on a CPU")
        self._attention: Any = attention
        self._num_streams = num_streams
        self._num_kv_heads = attention.num_kv_heads // num_streams
        self._cache: torch.Tensor | None = None
        self._keys_and_values: tuple[torch.Tensor, ...] = ()

    def rows(self, num_tokens: int, drawing: torch.Tensor | None) -> StreamRows:
        """Those of vLLM's present forward pass, the same for all layers.

        drawing: int64 [n], ascending: sequences of the batch that are computed in the second stream, too; None: all.
        """
        metadata = get_forward_context().attn_metadata
        if metadata is None:
            return StreamRows(num_tokens, self._num_streams, None, None)
        step = metadata[self._attention.layer_name]
        slots, table, starts, lengths = step.slot_mapping, step.block_table, step.query_start_loc, step.seq_lens
        tokens = None
        if self._num_streams == 2:
            block_size = self._attention.kv_cache.shape[2]
            slots = slots + slots.div(block_size, rounding_mode="floor") * block_size
            table = table * 2
            second = slots, table, starts[1:], lengths
            if drawing is not None:
                counts = starts.diff()
                is_drawing = torch.zeros(len(counts), dtype=torch.bool).index_fill_(0, drawing, True)
                tokens = is_drawing.repeat_interleave(counts).nonzero().squeeze(-1)
                ends = counts[drawing].cumsum(0, dtype=torch.int32)
                second = slots[tokens], table[drawing], ends, lengths[drawing]
            slots = torch.cat([slots, second[0] + block_size])
            table = torch.cat([table, second[1] + 1])
            starts = torch.cat([starts, second[2] + num_tokens])
            lengths = torch.cat([lengths, second[3]])
        plan = self._plan(starts, lengths)
        return StreamRows(num_tokens, self._num_streams, tokens, _Sequences(slots, table, starts, lengths, plan))

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: StreamRows) -> torch.Tensor:
        """[rows, H d] of [rows, H d], [rows, H_kv d], [rows, H_kv d]; H and H_kv: heads of one stream."""
        of, attention = rows.sequences, self._attention
        if of is None:
            return torch.zeros_like(query)
        impl, size = attention.impl, attention.head_size
        query, key, value = (heads.view(heads.shape[0], -1, size) for heads in (query, key, value))
        key_cache, value_cache = self._caches()
        scales = attention._k_scale_float, attention._v_scale_float, impl.kv_cache_dtype
        kernels = torch.ops._C
        kernels.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, of.slots, attention.isa, *scales)
        output = torch.empty(query.shape, dtype=query.dtype)
        kernels.cpu_attention_with_kv_cache(
            query, key_cache, value_cache, output, of.starts, of.lengths, impl.scale, _IS_CAUSAL, _NO_TENSOR,
            impl.sliding_window, of.block_table, _NO_SOFTCAP, of.plan, _NO_TENSOR, _NO_TENSOR, *scales,
        )  # fmt: skip
        return output.view(output.shape[0], -1)

    def _plan(self, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        attention = self._attention
        plan: torch.Tensor = torch.ops._C.get_scheduler_metadata(
            len(lengths), attention.num_heads // self._num_streams, self._num_kv_heads, attention.head_size, lengths,
            attention.dtype, starts, _IS_CAUSAL, attention.impl.sliding_window, attention.isa,
            envs.VLLM_CPU_ATTN_SPLIT_KV, _NO_TENSOR, attention.impl.kv_cache_dtype,
        )  # fmt: skip
        return plan

    def _caches(self) -> tuple[torch.Tensor, ...]:
        """Keys and values of [S blocks, H_kv, 2 tokens a block, d]; views of vLLM's cache, which it may exchange."""
        cache = self._attention.kv_cache
        if cache is not self._cache:
            num_blocks, _, block_size, _ = cache.shape
            of_streams = cache.view(num_blocks * self._num_streams, self._num_kv_heads, 2 * block_size, -1)
            self._keys_and_values = of_streams.chunk(2, dim=2)
            self._cache = cache
        return self._keys_and_values
