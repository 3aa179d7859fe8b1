"""Several tokens for each row in one step of vLLM's scheduler: what a step costs beside its tokens is paid once.

    scheduler: rows × L tokens ─► the first, by vLLM's runner ─┬─► [B, n] tokens and log-probabilities, 1 ≤ n ≤ L
                                         forward.next, sample ─┘ until a row writes its stop token

Scheduling, the preparation of a batch, messages and their reading take a quarter of a step of a small model, and
nothing in them depends on what is sampled. `rollout.vllm.scheduler.BurstScheduler` decides L, and tells it as vLLM
tells of drafts in speculative decoding: L - 1 tokens a row beside the first, whose places in the KV cache are there.
That fewer come back is nothing new to vLLM either: so it is with drafts that are refused. Here none is guessed: one
after another is sampled, as ever.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

from configs.library_layout import require_attributes
from rollout.vllm.model.sampler import Sampled

_BATCH_PARTS = ("token_ids_cpu", "is_token_ids", "num_tokens_no_spec")


def tokens_a_row(scheduler_output: Any) -> int:
    """L: how many tokens this step may sample for each of its rows."""
    drafts = scheduler_output.scheduled_spec_decode_tokens
    if not drafts:
        return 1
    (length,) = set(scheduler_output.num_scheduled_tokens.values())  # the scheduler gives all rows the same
    assert len(drafts) == len(scheduler_output.num_scheduled_tokens)
    return int(length)


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
        require_attributes("vllm", runner.input_batch, _BATCH_PARTS)
        self._runner = runner
        self._sampler = sampler

    def go_on(self, first: ModelRunnerOutput, length: int) -> ModelRunnerOutput:
        """`first` with up to `length` tokens a row in the place of one."""
        assert first.logprobs is not None
        num_rows = len(first.req_ids)
        tokens = [np.array([token for (token,) in first.sampled_token_ids])]
        logprobs = [first.logprobs.logprobs]
        while len(tokens) < length and not self._sampler.ends_a_row(tokens[-1]):
            sampled = self._sample_next(num_rows, tokens[-1])
            tokens.append(sampled.token_ids.numpy())
            logprobs.append(sampled.logprobs.numpy())
        by_row = np.stack(tokens, axis=1)
        if len(tokens) > 1:
            self._keep(by_row[:, 1:])
        first.sampled_token_ids = by_row.tolist()
        first.logprobs = _lists(np.stack(logprobs, axis=1))
        return first

    def _sample_next(self, num_rows: int, tokens: np.ndarray) -> Sampled:
        """One more token for each row, after `tokens`, of which the runner knows nothing yet."""
        self._runner.seq_lens[:num_rows].add_(1)
        sampled: Sampled = self._sampler.sample_rows(self._runner.model.model.on_cpu.next(torch.from_numpy(tokens)))
        return sampled

    def _keep(self, tokens: np.ndarray) -> None:
        """Tell the runner of tokens [B, n] that its own step has not sampled, as it does itself with others."""
        batch = self._runner.input_batch
        num_rows, num_tokens = tokens.shape
        starts = batch.num_tokens_no_spec[:num_rows]
        places = np.arange(num_rows)[:, None], starts[:, None] + np.arange(num_tokens)
        batch.token_ids_cpu[places] = tokens
        batch.is_token_ids[places] = True
        starts += num_tokens
        for request_id, new in zip(batch.req_ids, tokens.tolist(), strict=True):
            self._runner.requests[request_id].output_token_ids.extend(new)


def _lists(logprobs: np.ndarray) -> LogprobsLists:
    """Of [B, n, 2], a row's tokens one behind the other. Nobody reads the rest; see `rollout.vllm.scheduler`."""
    num_rows, num_tokens, width = logprobs.shape
    values = logprobs.reshape(num_rows * num_tokens, width)
    starts = list(range(0, num_rows * num_tokens + 1, num_tokens))
    return LogprobsLists(np.zeros(values.shape, np.int32), values, np.zeros(len(values), np.int32), starts)
