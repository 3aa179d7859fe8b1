"""vLLM's attention on a CPU by its two kernels alone, to which each stream is a sequence of its own.

    query, key, value of rows ─┬─► keys and values written to the KV cache ─► attention over the cache ─► of rows
                               └─ slots, block table, lengths of rows: `StreamRows`, made once a forward pass

vLLM comes to the same kernels through a custom operation, a look-up of the layer by its name, a backend's two methods
and new views of the cache, for each of both kernels: in a small model that takes as long as a third of the kernels.

A block of vLLM's holds the heads of all streams, one behind the other. So the same memory is S blocks of one stream
each: block b is block b S + s of stream s.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch
from vllm import envs
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention

from configs.library_layout import require_attributes
from rollout.vllm.model.cpu.rows import Sequences, StreamRows, first_that_begin_alike

_LAYER_PARTS = (
    "kv_cache", "layer_name", "head_size", "dtype", "num_heads", "num_kv_heads", "_k_scale_float", "_v_scale_float",
)  # fmt: skip
_KERNEL_SETTINGS = ("scale", "sliding_window", "kv_cache_dtype")
_NO_TENSOR, _NO_SOFTCAP, _IS_CAUSAL = None, 0.0, True


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
        slots, table, starts = step.slot_mapping, step.block_table, step.query_start_loc
        lengths = step.seq_lens.clone()  # vLLM's own is changed by who goes on from this pass
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
        return StreamRows(num_tokens, self._num_streams, tokens, Sequences(slots, table, starts, lengths, plan))

    def next_rows(self, rows: StreamRows, steps: torch.Tensor | None = None) -> StreamRows:
        """One more token of each sequence of `rows`, which have one of each; it lies in the block table already.

        steps: int32 [B], 0 for a sequence that has its row again; None: none has.
        """
        of = rows.sequences
        assert of is not None
        assert not rows.hold_prompts
        block_size = self._attention.kv_cache.shape[2]
        lengths = of.lengths + (1 if steps is None else rows.by_row(steps))
        places = lengths - 1
        blocks = of.block_table.gather(1, (places // block_size).long().unsqueeze(-1)).squeeze(-1)
        slots = blocks.long() * block_size + places % block_size
        plan = self._plan(of.starts, lengths)
        return replace(rows, sequences=replace(of, slots=slots, lengths=lengths, plan=plan))

    def without_repeats(self, rows: StreamRows, ids: torch.Tensor) -> StreamRows:
        """`rows`, of those that are equal only the first computed; ids: int64 [rows], what each reads."""
        of = rows.sequences
        assert of is not None
        starts = of.starts.tolist()
        firsts = torch.tensor(first_that_begin_alike(ids.tolist(), starts, self._known_contexts(of)))
        is_computed = firsts == torch.arange(len(firsts))
        computed = is_computed.nonzero().squeeze(-1)
        if len(computed) == len(firsts):
            return rows
        number = is_computed.cumsum(0)  # of computed rows, with this one
        ends = torch.cat([number.new_zeros(1), number])[of.starts.long()]
        has_rows = ends.diff() > 0
        new_starts = torch.cat([ends[:1], ends[1:][has_rows]]).int()
        lengths = of.lengths[has_rows]
        sequences = Sequences(of.slots, of.block_table[has_rows], new_starts, lengths, self._plan(new_starts, lengths))
        return replace(rows, sequences=sequences, computed=computed, same_as=number[firsts] - 1)

    def _known_contexts(self, of: Sequences) -> list[Hashable]:
        """Of each sequence, what is equal for two only if the keys and values before their rows are."""
        block_size = self._attention.kv_cache.shape[2]
        contexts: list[Hashable] = []
        num_before = of.lengths - of.starts.diff()
        for number, (tokens, blocks) in enumerate(zip(num_before.tolist(), of.block_table, strict=True)):
            # A block that two of them have is the same memory, which vLLM shares where whole blocks are equal.
            is_shareable = tokens % block_size == 0
            contexts.append(tuple(blocks[: tokens // block_size].tolist()) if is_shareable else number)
        return contexts

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: StreamRows) -> torch.Tensor:
        """[U, H d] of [U, H d], [U, H_kv d], [U, H_kv d], of computed rows; H and H_kv: heads of one stream."""
        of, attention = rows.sequences, self._attention
        if of is None:
            return torch.zeros_like(query)
        impl, size = attention.impl, attention.head_size
        query, key, value = (heads.view(heads.shape[0], -1, size) for heads in (query, key, value))
        if rows.same_as is not None:
            key, value = key[rows.same_as], value[rows.same_as]
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
