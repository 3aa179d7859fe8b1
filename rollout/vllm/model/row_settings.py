"""How a request is sampled, on its way through vLLM to the sampler.

A request's seed and guidance scale travel in `SamplingParams.extra_args`: with a seed in its own field, vLLM's first
model runner would carry a generator for it from step to step.
"""

from __future__ import annotations

from typing import Any

from vllm import SamplingParams

from rollout.vllm.model.sampler import RowSettings

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
