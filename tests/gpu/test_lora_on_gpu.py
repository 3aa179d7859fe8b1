"""LoRA on one GPU: small changes survive its kernels, and captured graphs see new adapters."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.schema import LoraConfig
from learner.janus_policy import JanusPolicy
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.engine import EngineSettings
from rollout.vllm import VllmEngine
from rollout.vllm.model.adapters import _adapted_linear, _compiled
from rollout.weights.adapters import add_adapters, named_adapters
from rollout.weights.buckets import pack_bucket
from tests.gpu.test_engine_on_gpu import CONFIG, MAX_TOLERANCE, MEAN_TOLERANCE, SHAPE, load_twin, requests_for
from tests.lora_slopes import tokens_of
from tests.unit.learner.test_lora import slope

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@pytest.mark.parametrize("num_rows", [1, 16, 512])
@pytest.mark.parametrize("by", ["learner", "engine", "compiled"])
def test_a_bfloat16_layer_shows_the_first_small_changes_in_full(by: str, num_rows: int) -> None:
    """At the widths of Janus-Pro-7B, ten steps at 1e-6; by the learner's layer, the engine's, and compiled."""
    torch.manual_seed(0)
    generator = torch.Generator("cuda").manual_seed(0)
    module = nn.ModuleDict({"up_proj": nn.Linear(4096, 11008, bias=False, dtype=torch.bfloat16, device="cuda")})
    add_adapters(module, LoraConfig(targets=("up_proj",)))
    adapted = named_adapters(module)["up_proj"]
    signs = torch.randn(11008, 32, generator=generator, device="cuda").sign()
    adapted.lora_b.data = (1e-5 * signs).bfloat16()
    x = torch.randn(512, 4096, generator=generator, device="cuda").bfloat16()

    def then_added(linear: object, rows: torch.Tensor) -> torch.Tensor:
        y = linear(rows, adapted.base.weight, None, adapted.lora_a, adapted.lora_b, 1.0)  # type: ignore[operator]
        return y + torch.zeros_like(y)  # what inductor would like to fuse the sum with

    layer = {
        "learner": adapted,
        "engine": lambda rows: then_added(_adapted_linear, rows),
        "compiled": torch.compile(lambda rows: then_added(_compiled, rows), dynamic=False),
    }[by]
    with torch.no_grad():
        exact = x.double() @ adapted.lora_a.double().T @ adapted.lora_b.double().T
        # The same kernel without a change: another one would round the product in other places.
        zero = torch.zeros_like(adapted.lora_b)
        before = [
            _adapted_linear(rows, adapted.base.weight, None, adapted.lora_a, zero, 1.0) for rows in x.split(num_rows)
        ]
        after = torch.cat([layer(rows) for rows in x.split(num_rows)])
    assert slope(after - torch.cat(before), exact) == pytest.approx(1, abs=0.1)


@pytest.mark.asyncio
async def test_captured_graphs_see_new_adapters(tmp_path: Path) -> None:
    save_random_tiny_janus(tmp_path, SHAPE, [f"word{index}" for index in range(80)])
    lora = LoraConfig(rank=8, alpha=16.0)
    policy = JanusPolicy.load(str(tmp_path), torch.float32, logprob_chunk_bytes=2**20, lora=lora)
    engine = await VllmEngine.start(EngineSettings(str(tmp_path), CONFIG, "float32", lora=lora))
    try:
        for version in (1, 2):
            for layer in policy.adapters().values():
                nn.init.normal_(layer.lora_b, std=0.1 * version)
            await engine.update_weights(version, [pack_bucket(policy.named_exported_parameters())])
            requests = requests_for(load_twin(tmp_path, "float32"), "image", f"version{version}")
            results = await asyncio.gather(*map(engine.generate, requests))
            for request, result in zip(requests, results, strict=True):
                with torch.no_grad():
                    logprobs, _ = policy(tokens_of(request, result.token_ids))
                differences = (logprobs[0] - torch.from_numpy(result.logprobs)).abs()
                assert differences.mean() < MEAN_TOLERANCE["float32"]
                assert differences.max() < MAX_TOLERANCE["float32"]
    finally:
        await engine.close()
