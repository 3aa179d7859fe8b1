"""LoRA in a real vLLM engine: the adapters stay unmerged, agree with the learner's, and show small changes in full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from configs.errors import WeightSyncError
from configs.local.ports import free_port
from configs.schema import LoraConfig, RolloutConfig, TinyJanusConfig
from learner.janus_policy import JanusPolicy
from learner.warm_start.tiny_janus import build_tiny_janus, save_pretrained_model
from learner.zero import close_distributed, init_distributed
from rollout.engine import EngineSettings, SequenceRequest
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.vllm import VllmEngine
from rollout.weights.buckets import pack_bucket
from tests.lora_slopes import Slopes, measure, tokens_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

CONFIG = RolloutConfig(
    max_prompt_tokens=32,
    max_cot_tokens=32,
    max_num_seqs=48,
    kv_cache_gib=0.25,
    enforce_eager=True,
    threads_per_worker=1,
)
WORDS = [f"word{index}" for index in range(80)]
LORA = LoraConfig(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
"""Not all of a joined layer: k and gate have none."""
TOLERANCE = 1e-4


def save_in_bfloat16(folder: Path, config: TinyJanusConfig, num_kv_heads: int) -> None:
    """So that base weights, and what is merged into them, lie on the grid of bfloat16."""
    template, tokenizer = build_tiny_janus(config, WORDS)
    template.config.text_config.num_key_value_heads = num_kv_heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = type(template)(template.config).bfloat16().eval()
    model.generation_config = template.generation_config
    save_pretrained_model(model, tokenizer, folder)


def requests_for(folder: Path, phase: str, count: int, name: str) -> list[SequenceRequest]:
    checkpoint = JanusCheckpoint.from_pretrained(str(folder))
    special, num_new = checkpoint.special_ids, checkpoint.num_image_tokens if phase == "image" else 32
    rng = np.random.default_rng(0)
    requests = []
    for index in range(count):
        words = rng.integers(20, checkpoint.text_vocab_size, size=4 + index)
        end = [special.begin_of_image] if phase == "image" else []
        prompt = np.array([special.bos, *words, *end], dtype=np.int32)
        requests.append(SequenceRequest(f"{name}-{phase}-{index}", phase, prompt, num_new, 1.0, 5.0, seed=index))
    return requests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_in_bfloat16(folder, TinyJanusConfig(num_layers=2), num_kv_heads=2)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    engine = await VllmEngine.start(EngineSettings(str(folder), CONFIG, lora=LORA))
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    init_distributed(0, 1, "127.0.0.1", free_port(), "cpu", 60)
    yield
    close_distributed()


async def assert_agree(engine: VllmEngine, policy: JanusPolicy, requests: Sequence[SequenceRequest]) -> None:
    results = await asyncio.gather(*map(engine.generate, requests))
    for request, result in zip(requests, results, strict=True):
        with torch.no_grad():
            expected, _ = policy(tokens_of(request, result.token_ids))
        np.testing.assert_allclose(result.logprobs, expected[0].numpy(), atol=TOLERANCE, err_msg=request.request_id)


async def test_log_probabilities_are_the_learners_with_new_adapters_as_with_the_first(
    engine: VllmEngine, folder: Path
) -> None:
    policy = JanusPolicy.load(str(folder), torch.float32, logprob_chunk_bytes=2**20, lora=LORA)
    requests = [one for phase in ("cot", "image") for one in requests_for(folder, phase, 4, "start")]
    await assert_agree(engine, policy, requests)
    with torch.no_grad():
        base = [policy(tokens_of(request, [21, 22, 23]))[0] for request in requests]
        generator = torch.Generator().manual_seed(0)
        for layer in policy.adapters().values():
            layer.lora_b.normal_(std=0.3, generator=generator)
        changes = [policy(tokens_of(request, [21, 22, 23]))[0] for request in requests]
    assert min(float((one - other).abs().max()) for one, other in zip(base, changes, strict=True)) > 1000 * TOLERANCE
    exported = policy.named_exported_parameters()
    await engine.update_weights(engine.weight_version + 1, [pack_bucket(exported[:3]), pack_bucket(exported[3:])])
    requests = [one for phase in ("cot", "image") for one in requests_for(folder, phase, 4, "changed")]
    await assert_agree(engine, policy, requests)


async def test_adapters_come_all_or_none_and_base_weights_not_at_all(engine: VllmEngine, folder: Path) -> None:
    policy = JanusPolicy.load(str(folder), torch.float32, logprob_chunk_bytes=2**20, lora=LORA)
    adapters, version = policy.named_exported_parameters(), engine.weight_version
    with pytest.raises(WeightSyncError, match=r"down_proj\.lora_B\.weight' is missing"):
        await engine.update_weights(version + 1, [pack_bucket(adapters[:-1])])
    with pytest.raises(WeightSyncError, match=r"embed_tokens\.weight' is no parameter"):
        await engine.update_weights(version + 1, [pack_bucket(policy.named_changing_parameters()[:1])])
    assert engine.is_usable
    assert engine.weight_version == version


async def test_an_engine_shows_the_first_small_changes_of_a_bfloat16_learner(
    engine: VllmEngine, folder: Path, process_group: None
) -> None:
    requests = [one for phase in ("cot", "image") for one in requests_for(folder, phase, 4, "slope")]
    check(await measure(engine, folder, LORA, requests, lr=1e-6, steps=3))


@pytest.mark.proof
async def test_slope_at_real_widths(tmp_path: Path, process_group: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Widths of Janus-Pro-1B, two layers, ten steps at T2I-R1's learning rate."""
    shape = TinyJanusConfig(hidden_size=2048, num_layers=2, num_heads=16, num_codes=1024)
    save_in_bfloat16(tmp_path, shape, num_kv_heads=16)
    lora = LoraConfig()
    engine = await VllmEngine.start(EngineSettings(str(tmp_path), CONFIG, lora=lora))
    try:
        requests = [one for phase in ("cot", "image") for one in requests_for(tmp_path, phase, 4, "slope")]
        slopes = await measure(engine, tmp_path, lora, requests, lr=1e-6, steps=10)
    finally:
        await engine.close()
    with capsys.disabled():
        print(f"\n{slopes}")
    check(slopes)


def check(slopes: Slopes) -> None:
    assert 0.95 <= slopes.engine <= 1.05, slopes
    assert slopes.merged < 0.2, slopes  # what engines were given before: that way fails
    assert slopes.sent_bytes < slopes.model_bytes
