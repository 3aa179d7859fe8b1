"""Attention on a CPU, each stream of each sequence by itself, against a slow one that keeps all keys and values."""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm._C  # noqa: F401  (the kernels)
from hypothesis import given
from hypothesis import strategies as st
from vllm.forward_context import override_forward_context
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from rollout.vllm.model.cpu.attention import CpuAttention
from rollout.vllm.model.cpu.rows import first_that_begin_alike

HEADS, KV_HEADS, SIZE, BLOCK_TOKENS, LAYER = 4, 2, 32, 32, "a layer"
PARTS = [HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE]
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
        self.last: Any = None
        self.seq_lens = torch.empty(0)

    def compute(
        self, counts: list[int], drawing: list[int] | None, ids: list[int] | None = None, goes_on: bool = False
    ) -> int:
        """So many further tokens of each; asserts that each row's answer is the slow one's. With `ids`, what each row
        reads, rows that begin alike are equal. goes_on: vLLM tells nothing of these tokens, one of each. Returns how
        many rows are computed."""
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
        if not goes_on:
            self.seq_lens = step.seq_lens
        second = range(3) if drawing is None else drawing
        rows = [(row, 0) for row, _ in places]
        if self.num_streams == 2:
            rows += [(row, 1) for row, _ in places if row in second]
        if goes_on:
            self.seq_lens += 1  # as the runner's own, which the pass was described by
            of_pass = self.attention.next_rows(self.last)
            assert of_pass.positions.tolist() == [self.lengths[row] - 1 for row, _ in rows]
        else:
            with override_forward_context(SimpleNamespace(attn_metadata={LAYER: step})):
                of_pass = self.attention.rows(len(places), None if drawing is None else torch.tensor(drawing).long())
        self.last = of_pass
        if ids is not None:
            of_pass = self.attention.without_repeats(of_pass, torch.tensor(ids))
        num_computed = len(rows) if of_pass.computed is None else len(of_pass.computed)
        qkv = torch.randn(num_computed, (HEADS + 2 * KV_HEADS) * SIZE, generator=GENERATOR)
        found = self.attention(*qkv.split(PARTS, dim=-1), of_pass)
        if of_pass.same_as is not None:
            qkv, of_rows = qkv[of_pass.same_as], found[of_pass.same_as]
        else:
            of_rows = found
        parts = zip(rows, *qkv.split(PARTS, dim=-1), strict=True)
        torch.testing.assert_close(of_rows, torch.stack([self.slow(*row, *qkv) for row, *qkv in parts]))
        by_token = of_pass.by_token(found).view(len(places), self.num_streams, -1)
        assert by_token[:, 0].equal(of_rows[: len(places)])
        assert by_token[:, -1].count_nonzero(-1).bool().tolist() == [
            self.num_streams == 1 or row in second for row, _ in places
        ]
        return num_computed

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


@pytest.mark.parametrize(("num_streams", "drawing"), [(1, None), (2, None), (2, []), (2, [1]), (2, [0, 2])])
def test_rows_go_on_by_themselves_over_the_end_of_a_block(num_streams: int, drawing: list[int] | None) -> None:
    sequences = Sequences(num_streams)
    sequences.compute([30, 5, 62], drawing)
    sequences.compute([1, 1, 1], drawing)
    for _ in range(3):
        sequences.compute([1, 1, 1], drawing, goes_on=True)
    sequences.compute([1, 1, 1], drawing)


@pytest.mark.parametrize("drawing", [None, [], [1], [0, 2]])
def test_a_row_that_has_ended_is_computed_again_in_its_place(drawing: list[int] | None) -> None:
    """Bit for bit: it reads and writes what it did, while the others go on."""
    sequences = Sequences(num_streams=2)
    sequences.compute([31, 5, 62], drawing)
    sequences.compute([1, 1, 1], drawing)
    attention, rows = sequences.attention, sequences.last
    qkv = torch.randn(len(rows.positions), (HEADS + 2 * KV_HEADS) * SIZE, generator=GENERATOR)
    once = attention(*qkv.split(PARTS, dim=-1), rows)
    ends = torch.tensor([1, 0, 1], dtype=torch.int32)
    again = attention.next_rows(rows, ends)
    steps = rows.by_row(ends)
    assert again.positions.tolist() == (rows.positions + steps).tolist()
    assert again.sequences.slots[steps == 0].tolist() == rows.sequences.slots[steps == 0].tolist()
    assert attention(*qkv.split(PARTS, dim=-1), again)[steps == 0].equal(once[steps == 0])


def test_rows_that_begin_alike_are_computed_once() -> None:
    """What each row reads is a letter; the second stream reads `-` in the place of most."""
    sequences = Sequences(num_streams=2)

    def compute(first: tuple[str, ...], second: tuple[str, ...]) -> int:
        return sequences.compute(
            [len(text) for text in first], None, [ord(letter) for letter in "".join(first + second)]
        )

    # "abcd", "xy", "e" and, of padding, "---" after the "a" that the first stream has, too, "(" twice, "-(".
    assert compute(("abcd(", "abcxy(", "abe("), ("a---(", "a----(", "a--(")) == 5 + 3 + 2 + 4 + 2 + 1
    assert compute(("A", "B", "C"), ("A", "B", "C")) == 6  # one token each is never alike, their keys differ
    assert compute(("pq", "r", "pq"), ("--", "-", "--")) == 10  # nor are these: what is before them differs


def test_rows_after_blocks_that_sequences_share_are_computed_once() -> None:
    """vLLM's prefix cache: the second sequence has the first one's block, which is computed in the same pass."""
    sequences = Sequences(num_streams=2)
    sequences.compute([BLOCK_TOKENS, 3, BLOCK_TOKENS], None)
    sequences.table[2, 0] = sequences.table[0, 0]
    sequences.keys[2, 0], sequences.keys[2, 1] = (list(sequences.keys[0, stream]) for stream in (0, 1))
    ids = [ord(letter) for letter in "ab" + "ab" + "ac" + "--" + "--" + "-("]
    assert sequences.compute([2, 2, 2], None, ids) == 6 + 6 - 1 - 1


@given(st.lists(st.tuples(st.sampled_from("pq"), st.text("ab", min_size=1, max_size=5)), max_size=8))
def test_the_first_row_that_begins_alike_is_found_as_a_slow_loop_finds_it(sequences: list[tuple[str, str]]) -> None:
    beginnings = [(context, ids[: end + 1]) for context, ids in sequences for end in range(len(ids))]
    starts = [0, *accumulate(len(ids) for _, ids in sequences)]
    ids = [ord(letter) for _, text in sequences for letter in text]
    found = first_that_begin_alike(ids, starts, [context for context, _ in sequences])
    assert found == [beginnings.index(beginning) for beginning in beginnings]


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
