"""Mixes the two streams of `rollout.vllm.guided_janus` just before vLLM samples.

    raw logits (kept by vLLM for the log-probabilities) ─► GuidanceProcessor ─► temperature ─► sample
    log_softmax(text) | log_softmax(cond codes) | uncond codes          text | -inf | -inf      (semantic CoT)
                                                                        -inf | u + w(c-u) | -inf     (picture)

A request draws a picture when `SamplingParams.extra_args` holds a guidance scale, and writes text
when it does not. This is vLLM's interface for its first model runner, which
`rollout.vllm.engine` asks for by name (`VLLM_USE_V2_MODEL_RUNNER=0`).
"""

from __future__ import annotations

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from rollout.guidance import guided_logits

GUIDANCE_SCALE = "guidance_scale"
"""The key in `extra_args`."""


class GuidanceProcessor(LogitsProcessor):
    """Guidance and phase of each row of vLLM's batch."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        config = vllm_config.model_config.hf_config
        self._text_vocab_size: int = config.text_config.text_vocab_size
        self._num_codes: int = config.vq_config.num_embeddings
        self._device = device
        self._scales: dict[int, float] = {}
        """Batch row -> guidance scale, of the rows that draw."""
        self._scale_column = torch.empty(0, 1, device=device)
        """float32 [B, 1], rebuilt when the batch changes; NaN where a row writes text."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        process_dict_updates(self._scales, batch_update, lambda params, *_: guidance_scale_of(params))
        column = [[self._scales.get(row, float("nan"))] for row in range(batch_update.batch_size)]
        self._scale_column = torch.tensor(column, device=self._device).reshape(-1, 1)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 [B, V_text + 2 num_codes], changed in place: vLLM keeps its own copy of the raw ones."""
        text, conditional, unconditional = logits.split([self._text_vocab_size, self._num_codes, self._num_codes], -1)
        draws = ~self._scale_column.isnan()
        text.masked_fill_(draws, float("-inf"))
        conditional.copy_(guided_logits(conditional, unconditional, self._scale_column))
        conditional.masked_fill_(~draws, float("-inf"))
        unconditional.fill_(float("-inf"))
        return logits


def guidance_scale_of(params: SamplingParams) -> float | None:
    """The guidance scale of a request that draws; None for one that writes text."""
    scale = (params.extra_args or {}).get(GUIDANCE_SCALE)
    return None if scale is None else float(scale)
