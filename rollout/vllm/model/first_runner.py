"""vLLM's first model runner with `TokenSampler` in the place of its own sampler. With `bursts`, all that knows it.

FirstRunnerWorker.load_model ─► model runner ─ hidden states ─► RunnerSampler ─► TokenSampler ─► vLLM's output
                                                          rollout.vllm.model.cpu.bursts: more tokens in the same step
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import ModelRunnerOutput, SamplerOutput

from configs.library_layout import require_attributes
from rollout.vllm.model.cpu.bursts import Burst, first_token_of, tokens_of_rows
from rollout.vllm.model.guided_worker import GuidedWorker
from rollout.vllm.model.row_settings import logprobs_tensors, settings_of
from rollout.vllm.model.sampler import Batch, RowSettings, Sampled, TokenSampler

_RUNNER_PARTS = ("sampler", "model", "input_batch", "requests", "seq_lens", "device")
_BATCH_PARTS = ("sampling_metadata", "req_ids")


class RunnerSampler(torch.nn.Module):
    """Called by the model runner as vLLM's own `Sampler` is, with hidden states in the place of logits."""

    def __init__(self, runner: Any) -> None:
        super().__init__()
        require_attributes("vllm", runner, _RUNNER_PARTS, "its model runner")
        require_attributes("vllm", runner.input_batch, _BATCH_PARTS)
        self.logprobs_mode: str = runner.sampler.logprobs_mode
        self._runner = runner
        self._sample: TokenSampler = runner.model.token_sampler(self.logprobs_mode == "processed_logprobs")
        self._seen: Any = None
        self._batch: Batch | None = None
        self._stops = np.empty(0, np.int64)
        """[B]: the token with which a row ends, -1 where there is none."""

    def forward(self, logits: torch.Tensor, sampling_metadata: Any, **_: Any) -> SamplerOutput:
        """logits: what `GuidedJanus.compute_logits` returned, hidden states [B, S d]."""
        if sampling_metadata is not self._runner.input_batch.sampling_metadata:
            return self._rehearse(logits)
        return _as_vllms(self.sample_rows(logits))

    def rows_that_draw(self) -> torch.Tensor | None:
        """Of the runner's present batch, int64 [n]; None: all."""
        drawing = self._present_batch().drawing
        return torch.empty(0, dtype=torch.int64) if drawing is None else drawing.rows

    def sample_rows(self, hidden: torch.Tensor) -> Sampled:
        """One token for each row of the runner's present batch; hidden: its states [B, S d]."""
        # The tokens so far: those that are computed before this step and those that it computes.
        return self._sample(hidden, self._present_batch(), self._runner.seq_lens[: hidden.shape[0]].long())

    def ends(self, tokens: np.ndarray) -> np.ndarray:
        """bool [B]: whether a row ends with its token, of int64 [B], before it has as many as it asks for."""
        is_last: np.ndarray = tokens == self._stops
        return is_last

    def _present_batch(self) -> Batch:
        runner = self._runner
        metadata = runner.input_batch.sampling_metadata
        if self._batch is None or metadata is not self._seen:  # vLLM makes another one when, and only when, rows change
            params = [runner.requests[request_id].sampling_params for request_id in runner.input_batch.req_ids]
            self._batch = Batch([settings_of(of_row) for of_row in params], runner.device)
            self._seen = metadata
            self._stops = np.array([stop for of_row in params for stop in of_row.stop_token_ids or [-1]])
            assert len(self._stops) == len(params), "a row has several tokens that end it"
        return self._batch

    def _rehearse(self, hidden: torch.Tensor) -> SamplerOutput:
        """vLLM's trial run, by which it sizes its KV cache: all rows write, then all draw."""
        num_rows = hidden.shape[0]
        positions = torch.zeros(num_rows, dtype=torch.int64, device=hidden.device)
        for scale in (None, 1.0):
            batch = Batch([RowSettings(0, 1.0, scale)] * num_rows, hidden.device)
            sampled = self._sample(hidden, batch, positions)
        return _as_vllms(sampled)


class FirstRunnerWorker(GuidedWorker):
    """vLLM's worker with the first model runner and Janus's sampler."""

    def load_model(self, **arguments: Any) -> None:
        super().load_model(**arguments)
        self.model_runner.sampler = sampler = RunnerSampler(self.model_runner)
        if (on_cpu := self.model_runner.model.model.on_cpu) is not None:
            on_cpu.rows_that_draw = sampler.rows_that_draw
        self._burst = Burst(self.model_runner, sampler)
        self._limits: Mapping[str, int] | None = None

    def execute_model(self, scheduler_output: Any) -> Any:
        self._limits = tokens_of_rows(scheduler_output)
        return super().execute_model(scheduler_output if self._limits is None else first_token_of(scheduler_output))

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: Any) -> Any:
        output = super().sample_tokens(grammar_output)
        if self._limits is None:
            return output
        assert isinstance(output, ModelRunnerOutput)
        return self._burst.go_on(output, self._limits)


def _as_vllms(sampled: Sampled) -> SamplerOutput:
    return SamplerOutput(sampled.token_ids.to(torch.int32).unsqueeze(-1), logprobs_tensors(sampled))
