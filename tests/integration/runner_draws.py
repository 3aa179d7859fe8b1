"""What one of vLLM's model runners samples, into a file: `python -m tests.integration.runner_draws first OUT.npz`.

A model runner is chosen by the environment of a process, before vLLM is imported, so that comparing two takes two.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

import numpy as np
import torch
from transformers import JanusForConditionalGeneration

from rollout.engine import EngineSettings
from rollout.vllm import VllmEngine
from tests.integration.test_vllm_engine import CONFIG, buckets_of, generate, ragged_prompts, requests_for
from tests.tiny_models import tiny_janus_folder


async def draw(runner: Literal["first", "second"]) -> dict[str, np.ndarray]:
    """Plans and pictures of one batch, and pictures with new weights: tokens, log-probabilities, versions, by name."""
    folder = tiny_janus_folder(num_kv_heads=2)
    janus = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = {phase: ragged_prompts(5, 3, janus, phase == "image") for phase in ("cot", "image")}
    config = CONFIG.model_copy(update={"model_runner": runner})
    engine = await VllmEngine.start(EngineSettings(str(folder), config))
    try:
        requests = [request for phase in prompts for request in requests_for(prompts[phase], phase, "both")]
        results = await generate(engine, requests)
        with torch.no_grad():
            for parameter in janus.lm_head.parameters():
                parameter.mul_(0.5)
            janus.model.language_model.norm.weight.mul_(1.5)
        await engine.update_weights(1, buckets_of(janus))
        results += await generate(engine, requests_for(prompts["image"][:2], "image", "new"))
    finally:
        await engine.close()
    found = {}
    for index, result in enumerate(results):
        found[f"tokens {index}"] = result.token_ids
        found[f"log-probabilities {index}"] = result.logprobs
        found[f"versions {index}"] = result.weight_versions
    return found


if __name__ == "__main__":
    np.savez(sys.argv[2], **asyncio.run(draw(sys.argv[1])))  # type: ignore[arg-type]
