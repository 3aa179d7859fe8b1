"""The rows of a forward pass on a CPU: what is computed of a batch's tokens, in which stream, and what but once.

    tokens [T] of B sequences ─► rows [T + n]: all tokens in the first stream, then those that draw in the second
                                   └─► of rows that begin alike the first one, [U]: these are computed

A row that writes text needs no second stream. What a token becomes depends on it and on those before it alone. So of
rows that begin alike (the prompts of a group, the padding that all pictures have in the second stream) one is
computed, and its keys and values are written for each.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Sequences:
    """Where the rows of a forward pass lie in the KV cache, as the kernels take it; n sequences, the streams' own."""

    slots: torch.Tensor
    """int64 [rows]"""
    block_table: torch.Tensor
    """int32 [n, blocks]"""
    starts: torch.Tensor
    """int32 [n + 1]: of a sequence's rows that are computed, its last ones."""
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
    sequences: Sequences | None
    """None in a trial run without a cache."""
    computed: torch.Tensor | None = None
    """int64 [U]: the rows that are computed, ascending; None: all."""
    same_as: torch.Tensor | None = None
    """int64 [rows]: which of the computed ones a row is equal to; None: each is its own."""

    @property
    def positions(self) -> torch.Tensor:
        """int64 [rows], where each sequence has one."""
        assert self.sequences is not None
        return self.sequences.lengths.long() - 1

    @property
    def hold_prompts(self) -> bool:
        """Whether a sequence has more than one token."""
        return self.sequences is not None and len(self.sequences.slots) >= len(self.sequences.starts)

    def of_second(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """[n, …] of [T, …]: of the tokens that are in the second stream."""
        return of_tokens if self.drawing is None else of_tokens[self.drawing]

    def by_row(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """[rows, …] of [T, …]."""
        return of_tokens if self.num_streams == 1 else torch.cat([of_tokens, self.of_second(of_tokens)])

    def of_computed(self, of_rows: torch.Tensor) -> torch.Tensor:
        """[U, …] of [rows, …]."""
        return of_rows if self.computed is None else of_rows[self.computed]

    def by_token(self, of_rows: torch.Tensor) -> torch.Tensor:
        """[T, S d] of the computed rows [U, d], 0 where a token has no second row."""
        if self.same_as is not None:
            of_rows = of_rows[self.same_as]
        if self.drawing is None:
            streams = of_rows.view(self.num_streams, self.num_tokens, -1)
            return streams.transpose(0, 1).reshape(self.num_tokens, -1)
        both = of_rows.new_zeros(self.num_tokens, self.num_streams, of_rows.shape[-1])
        both[:, 0] = of_rows[: self.num_tokens]
        both[self.drawing, 1] = of_rows[self.num_tokens :]
        return both.view(self.num_tokens, -1)


def first_that_begin_alike(ids: Sequence[int], starts: Sequence[int], contexts: Sequence[Hashable]) -> list[int]:
    """For each row, the first whose sequence is the same up to it, itself where there is none before it.

    ids: of [rows]; starts: of [n + 1], a sequence's rows; contexts: of [n], what a sequence has before its rows.
    """
    # A trie whose nodes are rows: a row is known by the one before it, itself a first one, and what it reads.
    nodes: dict[tuple[Hashable, int], int] = {}
    firsts: list[int] = []
    for start, end, context in zip(starts[:-1], starts[1:], contexts, strict=True):
        before: Hashable = ("context", context)
        for row in range(start, end):
            before = nodes.setdefault((before, ids[row]), row)
            firsts.append(before)
    return firsts
