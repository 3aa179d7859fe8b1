"""How a request is sampled, on its way through vLLM to the sampler, and what vLLM takes back of its log-probabilities.

A request's seed and guidance scale travel in `SamplingParams.extra_args`: with a seed in its own field, vLLM's first
model runner would carry a generator for it from step to step.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.outputs import LogprobsTensors

from rollout.vllm.model.sampler import RowSettings, Sampled

SEED, GUIDANCE_SCALE = "seed", "guidance_scale"
"""Keys in `extra_args`; a request without a scale writes text."""


def extra_args(seed: int, guidance_scale: float | None) -> dict[str, Any]:
    """`SamplingParams.extra_args` of a request."""
    scale = {} if guidance_scale is None else {GUIDANCE_SCALE: guidance_scale}
    return {SEED: seed, **scale}


def settings_of(params: SamplingParams) -> RowSettings:
    """How a request is sampled; what `extra_args` gave."""
    extra = params.extra_args or {}
    # vLLM's 0 is all tokens.
    return RowSettings(extra.get(SEED, 0), params.temperature, extra.get(GUIDANCE_SCALE), params.top_k or None)


def logprobs_tensors(sampled: Sampled) -> LogprobsTensors:
    """Two columns, of which vLLM hands on whatever number there is; ranks are not asked for."""
    columns = sampled.token_ids.to(torch.int32).unsqueeze(-1).expand(-1, 2).contiguous()
    ranks = torch.zeros(len(columns), dtype=torch.int32, device=columns.device)
    return LogprobsTensors(columns, sampled.logprobs, ranks)
