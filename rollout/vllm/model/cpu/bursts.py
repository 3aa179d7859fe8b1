"""Several tokens for each row in one step of vLLM's scheduler: what a step costs beside its tokens is paid once.

    scheduler: L tokens a row, or as many as it lacks ─► the first, by vLLM's runner ─┬─► tokens and log-probabilities
                                of the rows that have not ended: forward.next, sample ┘

Scheduling, the preparation of a batch, messages and their reading take a quarter of a step of a small model, and
nothing in them depends on what is sampled. `rollout.vllm.scheduler.BurstScheduler` decides L, and tells it as vLLM
tells of drafts in speculative decoding: L - 1 tokens a row beside the first, whose places in the KV cache are there.
That fewer come back is nothing new to vLLM either: so it is with drafts that are refused. Here none is guessed: one
after another is sampled, as ever.

A row that ends does not end the step. It stays in the batch and computes its last token again, in the same place: what
it writes there is what was there, and what it samples is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

from configs.library_layout import require_attributes
from rollout.vllm.model.sampler import Sampled

_BATCH_PARTS = ("token_ids_cpu", "is_token_ids", "num_tokens_no_spec")


def tokens_of_rows(scheduler_output: Any) -> Mapping[str, int] | None:
    """How many tokens this step may sample for each request; None: one for each row, or a prompt is in it."""
    return scheduler_output.num_scheduled_tokens if scheduler_output.scheduled_spec_decode_tokens else None


def first_token_of(scheduler_output: Any) -> Any:
    """What is to be told to the runner: a step of one token a row."""
    rows = scheduler_output.num_scheduled_tokens
    return replace(
        scheduler_output,
        num_scheduled_tokens=dict.fromkeys(rows, 1),
        total_num_scheduled_tokens=len(rows),
        scheduled_spec_decode_tokens={},
    )


class Burst:
    """Goes on from a runner's step in which each row has sampled one token, on a CPU and without scheduling ahead."""

    def __init__(self, runner: Any, sampler: Any) -> None:
        """sampler: `rollout.vllm.model.first_runner.RunnerSampler`."""
        require_attributes("vllm", runner, ("input_ids",), "its model runner")
        require_attributes("vllm", runner.input_batch, _BATCH_PARTS)
        self._runner = runner
        self._sampler = sampler

    def go_on(self, first: ModelRunnerOutput, limits: Mapping[str, int]) -> ModelRunnerOutput:
        """`first`, a token a row, with up to so many tokens a row in its place, by request."""
        assert first.logprobs is not None
        inputs = self._runner.input_ids.gpu[: len(first.req_ids)].numpy()  # what each row has read last
        most = np.array([limits[request_id] for request_id in first.req_ids])
        tokens = [np.array([token for (token,) in first.sampled_token_ids])]
        logprobs = [first.logprobs.logprobs]
        counts = np.ones_like(most)
        goes_on = (counts < most) & ~self._sampler.ends(tokens[-1])
        while goes_on.any():
            inputs = np.where(goes_on, tokens[-1], inputs)
            sampled = self._sample_next(inputs, goes_on)
            tokens.append(sampled.token_ids.numpy())
            logprobs.append(sampled.logprobs.numpy())
            counts += goes_on
            goes_on &= (counts < most) & ~self._sampler.ends(tokens[-1])
        table, is_kept = np.stack(tokens, axis=1), np.arange(len(tokens)) < counts[:, None]
        by_row = [row[:count] for row, count in zip(table.tolist(), counts.tolist(), strict=True)]
        self._keep(by_row, table[:, 1:], is_kept[:, 1:])
        first.sampled_token_ids = by_row
        first.logprobs = _lists(np.stack(logprobs, axis=1)[is_kept], counts)
        return first

    def _sample_next(self, inputs: np.ndarray, goes_on: np.ndarray) -> Sampled:
        """One more token for each row that goes on, after those tokens, of which the runner knows nothing yet."""
        steps = None if goes_on.all() else torch.from_numpy(goes_on).int()
        self._runner.seq_lens[: len(inputs)].add_(1 if steps is None else steps)
        hidden = self._runner.model.model.on_cpu.next(torch.from_numpy(inputs), steps)
        sampled: Sampled = self._sampler.sample_rows(hidden)
        return sampled

    def _keep(self, by_row: Sequence[list[int]], later: np.ndarray, is_kept: np.ndarray) -> None:
        """Tell the runner of all tokens but the first of each row, which its own step has sampled.

        later, is_kept: those [B, n], and which of them there are."""
        batch = self._runner.input_batch
        ends = batch.num_tokens_no_spec[: len(by_row)]
        rows, columns = is_kept.nonzero()
        batch.token_ids_cpu[rows, ends[rows] + columns] = later[is_kept]
        batch.is_token_ids[rows, ends[rows] + columns] = True
        ends += is_kept.sum(1)
        for request_id, (_, *new) in zip(batch.req_ids, by_row, strict=True):
            self._runner.requests[request_id].output_token_ids.extend(new)


def _lists(values: np.ndarray, counts: np.ndarray) -> LogprobsLists:
    """Of [tokens, 2], a row's tokens one behind the other. Nobody reads the rest; see `rollout.vllm.scheduler`."""
    starts = [0, *counts.cumsum().tolist()]
    return LogprobsLists(np.zeros(values.shape, np.int32), values, np.zeros(len(values), np.int32), starts)
