"""vLLM's newer model runner with `TokenSampler` in the place of its own sampler. All that knows that runner.

    GuidedJanus.get_model_state_cls ─► GuidedModelState.custom_sampler ─► RunnerSampler ─► TokenSampler

The runner keeps a request in one place of its state as long as it runs, and tells the sampler where when it joins;
a step then says which places its rows come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.worker.gpu.input_batch import InputBatch, get_num_sampled_and_rejected
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from configs.library_layout import require_attributes
from rollout.vllm.model.row_settings import logprobs_tensors, settings_of
from rollout.vllm.model.sampler import Batch, RowSettings

_SAMPLER_PARTS = ("add_request", "apply_staged_writes", "logprobs_mode", "penalties_state", "req_states")
_WRITES = RowSettings(0, 1.0, None)


class RunnerSampler:
    """Called by the model runner as vLLM's own `Sampler` is, with hidden states in the place of logits."""

    compute_nans = False

    def __init__(self, sampler: Any, model: Any) -> None:
        """sampler: vLLM's own, from which this one takes the runner's state; it samples nothing."""
        require_attributes("vllm", sampler, _SAMPLER_PARTS, "its sampler")
        self.penalties_state = sampler.penalties_state
        """The runner writes each token's count into it."""
        self._prefill_len = sampler.req_states.prefill_len
        self._sample = model.token_sampler(sampler.logprobs_mode == "processed_logprobs")
        self._settings: dict[int, RowSettings] = {}
        """By the place of a request in the runner's state."""
        self._places: np.ndarray | None = None
        """Of the rows of `_batch`; None where a request has joined since."""
        self._batch: Batch | None = None

    def add_request(self, place: int, params: SamplingParams) -> None:
        """A request joins, in a place that another may have left."""
        self._settings[place] = settings_of(params)
        self._places = None

    def apply_staged_writes(self) -> None:
        """vLLM's sampler copies its settings to the device here; this one's go with `Batch`."""

    def __call__(self, logits: torch.Tensor, input_batch: InputBatch) -> SamplerOutput:
        """logits: what `GuidedJanus.compute_logits` returned, hidden states [B, S d]."""
        seq_lens = input_batch.seq_lens[: input_batch.num_reqs]
        sampled = self._sample(logits, self._batch_of(input_batch, logits.device), seq_lens.long())
        # A row whose prompt is not read to its end has sampled nothing.
        num_sampled, num_rejected = get_num_sampled_and_rejected(
            seq_lens.new_ones(input_batch.num_reqs),
            input_batch.seq_lens,
            input_batch.cu_num_logits,
            input_batch.idx_mapping,
            self._prefill_len.gpu,
        )
        return SamplerOutput(
            sampled.token_ids.unsqueeze(-1), logprobs_tensors(sampled), None, num_sampled, num_rejected
        )

    def _batch_of(self, input_batch: InputBatch, device: torch.device) -> Batch:
        places = input_batch.idx_mapping_np[: input_batch.num_reqs]
        if self._places is None or not np.array_equal(places, self._places):
            # In vLLM's trial runs nobody has joined.
            self._batch = Batch([self._settings.get(int(place), _WRITES) for place in places], device)
            self._places = places.copy()
        assert self._batch is not None
        return self._batch


class GuidedModelState(DefaultModelState):
    """What vLLM's newer runner asks of a model class: here, for its sampler."""

    def custom_sampler(self, sampler: Any) -> tuple[RunnerSampler, None]:
        return RunnerSampler(sampler, self.model), None
