"""From token ids to hidden states on a CPU, kernel by kernel.

vLLM's runner ─ ids [T] ─► rows ─► embed ─► layers ─┬─► [T, S d]
a burst ─ tokens [B] ─► the next rows ─► embed ─────┘
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from rollout.guidance import unconditional_ids
from rollout.vllm.model.cpu.layers import CpuLayers
from rollout.vllm.model.cpu.rows import StreamRows

if TYPE_CHECKING:
    from rollout.vllm.model.guided_janus import GuidedJanusModel


class CpuForward:
    """The forward pass of a `GuidedJanusModel`. Not under torch.compile."""

    def __init__(self, model: GuidedJanusModel) -> None:
        self._model = model
        self._num_streams = model.num_streams
        self._layers = CpuLayers(model.language_model, model.num_streams)
        self._rows: StreamRows | None = None
        """Of the last pass."""
        self.rows_that_draw: Callable[[], torch.Tensor | None] = lambda: None
        """int64 [n], ascending: of the batch that is computed; None: all of them may."""

    def __call__(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[T, S d] of int64 [T]: vLLM's present pass, as its forward context describes it."""
        rows = self._layers.attention.rows(len(input_ids), self.rows_that_draw())
        ids, embeddings = self._embed(input_ids, rows)
        positions = rows.by_row(positions)
        if rows.hold_prompts:
            rows = self._layers.attention.without_repeats(rows, ids)
            embeddings, positions = rows.of_computed(embeddings), rows.of_computed(positions)
        self._rows = rows
        return rows.by_token(self._layers(embeddings, positions, rows))

    def next(self, tokens: torch.Tensor, steps: torch.Tensor | None = None) -> torch.Tensor:
        """[B, S d]: hidden states of one more token, int64 [B], of each sequence of the last pass, which has computed
        one of each. steps: int32 [B], 0 for a sequence whose token is the last pass's; None: none is."""
        assert self._rows is not None
        self._rows = rows = self._layers.attention.next_rows(self._rows, steps)
        return rows.by_token(self._layers(self._embed_sampled(tokens, rows), rows.positions, rows))

    def _embed(self, input_ids: torch.Tensor, rows: StreamRows) -> tuple[torch.Tensor, torch.Tensor]:
        """What each of the rows reads, int64 [rows], and its embedding, [rows, d]; input_ids: int64 [T]."""
        model = self._model
        embeddings = model.embed(input_ids)
        if self._num_streams == 1:
            return input_ids, embeddings
        # Each of the second stream's tokens is the first one's or padding.
        of_first = rows.of_second(input_ids)
        of_second = unconditional_ids(of_first, model.special_ids, model.text_vocab_size)
        padding = model.language_model.embed_tokens(input_ids.new_tensor([model.special_ids.pad]))
        is_same = (of_second == of_first).unsqueeze(-1)
        second = torch.where(is_same, rows.of_second(embeddings), padding)
        return torch.cat([input_ids, of_second]), torch.cat([embeddings, second])

    def _embed_sampled(self, tokens: torch.Tensor, rows: StreamRows) -> torch.Tensor:
        """[rows, d]: of those that draw, a code in both streams; of others, a word in the first."""
        model = self._model
        if self._num_streams == 1:
            return model.embed(tokens)
        codes = model.embed_codes(rows.of_second(tokens) - model.text_vocab_size)
        if rows.drawing is None:
            return codes.repeat(2, 1)
        words = model.language_model.embed_tokens(tokens.index_fill(0, rows.drawing, model.special_ids.pad))
        return torch.cat([words.index_copy(0, rows.drawing, codes), codes])
