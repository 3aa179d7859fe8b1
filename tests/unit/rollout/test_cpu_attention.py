"""Attention on a CPU, each stream of each sequence by itself, against a slow one that keeps all keys and values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm._C  # noqa: F401  (the kernels)
from vllm.forward_context import override_forward_context
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from rollout.vllm.model.cpu_attention import CpuAttention

HEADS, KV_HEADS, SIZE, BLOCK_TOKENS, LAYER = 4, 2, 32, 32, "a layer"
GENERATOR = torch.Generator().manual_seed(0)


class Sequences:
    """Three sequences in a paged cache, and what has been computed of them."""

    def __init__(self, num_streams: int) -> None:
        self.num_streams = num_streams
        attention: Any = SimpleNamespace(
            kv_cache=torch.full((12, num_streams * KV_HEADS, BLOCK_TOKENS, 2 * SIZE), 100.0),
            layer_name=LAYER, head_size=SIZE, dtype=torch.float32, num_heads=num_streams * HEADS,
            num_kv_heads=num_streams * KV_HEADS, _k_scale_float=1.0, _v_scale_float=1.0,
            isa=_get_attn_isa(torch.float32, BLOCK_TOKENS, SIZE, "auto"),
            impl=SimpleNamespace(scale=SIZE**-0.5, sliding_window=-1, kv_cache_dtype="auto"),
        )  # fmt: skip
        self.attention = CpuAttention(attention, num_streams)
        self.table = torch.tensor([[7, 2, 9], [1, 11, 3], [4, 5, 8]], dtype=torch.int32)
        self.keys: dict[tuple[int, int], list[torch.Tensor]] = {}
        self.lengths = [0, 0, 0]

    def compute(self, counts: list[int], drawing: list[int] | None) -> None:
        """So many further tokens of each; asserts that each row's answer is the slow one's."""
        places = [(row, self.lengths[row] + token) for row, count in enumerate(counts) for token in range(count)]
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        step = SimpleNamespace(
            slot_mapping=torch.tensor(
                [
                    int(self.table[row, place // BLOCK_TOKENS]) * BLOCK_TOKENS + place % BLOCK_TOKENS
                    for row, place in places
                ]
            ),
            block_table=self.table,
            query_start_loc=torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32),
            seq_lens=torch.tensor(self.lengths, dtype=torch.int32),
        )
        second = range(3) if drawing is None else drawing
        rows = [(row, 0) for row, _ in places]
        if self.num_streams == 2:
            rows += [(row, 1) for row, _ in places if row in second]
        qkv = torch.randn(len(rows), (HEADS + 2 * KV_HEADS) * SIZE, generator=GENERATOR)
        query, key, value = qkv.split([HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE], dim=-1)
        with override_forward_context(SimpleNamespace(attn_metadata={LAYER: step})):
            of_pass = self.attention.rows(len(places), None if drawing is None else torch.tensor(drawing).long())
            found = self.attention(query, key, value, of_pass)
        expected = torch.stack([self.slow(*row, *parts) for row, *parts in zip(rows, query, key, value, strict=True)])
        torch.testing.assert_close(found, expected)
        by_token = of_pass.by_token(found).view(len(places), self.num_streams, -1)
        assert by_token[:, 0].equal(found[: len(places)])
        assert by_token[:, -1].count_nonzero(-1).bool().tolist() == [
            self.num_streams == 1 or row in second for row, _ in places
        ]

    def slow(self, row: int, stream: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        past = self.keys.setdefault((row, stream), [])
        past.append(torch.stack([key, value]))
        keys, values = torch.stack(past, dim=1).view(2, len(past), KV_HEADS, SIZE).repeat_interleave(2, dim=2)
        weights = torch.einsum("hd,nhd->hn", query.view(HEADS, SIZE), keys).mul(SIZE**-0.5).softmax(-1)
        return torch.einsum("hn,nhd->hd", weights, values).reshape(-1)


@pytest.mark.parametrize("drawing", [None, [], [1], [0, 2], [0, 1, 2]])
def test_rows_attend_to_their_own_sequence_and_stream(drawing: list[int] | None) -> None:
    """Prompts, then single tokens over the end of a block, then a prompt's rest beside single tokens."""
    sequences = Sequences(num_streams=2)
    for counts in ([31, 5, 40], *[[1, 1, 1]] * 3, [1, 30, 1]):
        sequences.compute(counts, drawing)


def test_one_stream_is_attended_to_as_it_is() -> None:
    sequences = Sequences(num_streams=1)
    for counts in ([31, 5, 40], [1, 1, 1], [1, 1, 1]):
        sequences.compute(counts, None)


def test_a_trial_run_without_a_cache_gives_rows_of_its_size() -> None:
    attention = Sequences(num_streams=2).attention
    with override_forward_context(SimpleNamespace(attn_metadata=None)):
        rows = attention.rows(3, None)
    found = attention(torch.ones(6, HEADS * SIZE), torch.ones(6, KV_HEADS * SIZE), torch.ones(6, KV_HEADS * SIZE), rows)
    assert rows.by_token(found).equal(torch.zeros(3, 2 * HEADS * SIZE))
