"""The vLLM engine on one GPU, with CUDA graphs, against transformers' own model."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import JanusForConditionalGeneration

from configs.errors import WeightSyncError
from configs.local.ports import free_port
from configs.schema import RolloutConfig, TinyJanusConfig
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.engine import EngineSettings, SequenceRequest, SequenceResult
from rollout.guidance import guided_logits
from rollout.records import GroupPlace, TensorInfo, WeightBucket
from rollout.vllm import VllmEngine
from rollout.weights.buckets import pack_bucket
from rollout.weights.groups import WeightGroup

pytestmark = [pytest.mark.gpu, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

CONFIG = RolloutConfig(
    gpus_per_worker=1,
    max_prompt_tokens=64,
    max_cot_tokens=48,
    max_num_seqs=32,
    gpu_memory_utilization=0.1,
    kv_cache_gib=1.0,  # so that the tests of this folder can run side by side on one GPU
    enforce_eager=False,
)
SHAPE = TinyJanusConfig(hidden_size=256, num_heads=4)
"""Heads of 64, which every attention kernel of vLLM's has."""
NUM_IMAGE_TOKENS = 64
GUIDANCE = 5.0
IPC_BUCKET_BYTES = 1 << 18
"""So small that there are several, and some tensors are larger."""
TRAINED = ("model.language_model.", "lm_head.")

# Kernels for float32 on GPUs may multiply in TF32, with 10 bits of mantissa; bfloat16 has 7.
MEAN_TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}
"""Mean absolute difference of log-probabilities, nats."""
MAX_TOLERANCE = {"float32": 0.1, "bfloat16": 0.5}
TIE_TOLERANCE = 0.5
"""Guided logits, in which guidance multiplies the kernels' rounding: a greedy token may be so far below the best."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_random_tiny_janus(folder, SHAPE, [f"word{index}" for index in range(80)])
    return folder


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[("float32", "first"), ("bfloat16", "first"), ("bfloat16", "second")]
)
async def engine_and_dtype(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[tuple[VllmEngine, str]]:
    dtype, model_runner = request.param
    config = CONFIG.model_copy(update={"model_runner": model_runner})
    engine = await VllmEngine.start(EngineSettings(str(folder), config, dtype))
    yield engine, dtype
    await engine.close()


def load_twin(folder: Path, dtype: str) -> JanusForConditionalGeneration:
    """transformers' model with weights rounded to `dtype`, computing in float32."""
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.float().cuda().eval()


def requests_for(
    model: JanusForConditionalGeneration, phase: str, name: str, count: int = 16, temperature: float = 1.0
) -> list[SequenceRequest]:
    """Ragged prompts of random words."""
    rng = np.random.default_rng(len(name))
    config = model.generation_config
    end = [config.generation_kwargs["boi_token_id"]] if phase == "image" else []
    num_new = NUM_IMAGE_TOKENS if phase == "image" else CONFIG.max_cot_tokens
    requests = []
    for index, length in enumerate(rng.integers(3, 40, count)):
        words = rng.integers(20, model.config.text_config.vocab_size, length)
        prompt = np.array([config.bos_token_id, *words, *end], np.int32)
        request_id = f"{name}-{phase}-{index}"
        requests.append(SequenceRequest(request_id, phase, prompt, num_new, temperature, GUIDANCE, seed=1000 + index))
    return requests


async def generate(engine: VllmEngine, requests: Sequence[SequenceRequest]) -> list[SequenceResult]:
    return await asyncio.gather(*map(engine.generate, requests))


@torch.no_grad()
def teacher_forced_logits(
    model: JanusForConditionalGeneration, request: SequenceRequest, result: SequenceResult, unconditional: bool = False
) -> torch.Tensor:
    """float32 [N, V] on the CPU: before each sampled token, in one pass over the whole sequence."""
    prompt_ids = request.prompt_ids
    if unconditional:
        config = model.generation_config
        kept = np.isin(prompt_ids, (config.bos_token_id, config.generation_kwargs["boi_token_id"]))
        prompt_ids = np.where(kept, prompt_ids, config.pad_token_id)
    prompt, tokens = (torch.from_numpy(ids).long().cuda() for ids in (prompt_ids, result.token_ids))
    embed = model.get_input_embeddings()
    draws = request.phase == "image"
    drawn = model.prepare_embeddings_for_image_generation(tokens) if draws else embed(tokens)
    inputs = torch.cat([embed(prompt), drawn.reshape(len(tokens), -1)[:-1]])[None]
    hidden = model.model.language_model(inputs_embeds=inputs).last_hidden_state[0, len(prompt) - 1 :]
    return (model.model.generation_head(hidden) if draws else model.lm_head(hidden)).cpu()


def assert_logprobs_agree(
    model: JanusForConditionalGeneration,
    requests: Sequence[SequenceRequest],
    results: Sequence[SequenceResult],
    dtype: str,
) -> None:
    differences = []
    for request, result in zip(requests, results, strict=True):
        logprobs = teacher_forced_logits(model, request, result).log_softmax(-1)
        tokens = torch.from_numpy(result.token_ids).long()
        differences.append(np.abs(logprobs.gather(-1, tokens[:, None])[:, 0].numpy() - result.logprobs))
    together = np.concatenate(differences)
    assert together.mean() < MEAN_TOLERANCE[dtype]
    assert together.max() < MAX_TOLERANCE[dtype]


async def test_greedy_pictures_take_the_best_guided_token_of_transformers_model(
    engine_and_dtype: tuple[VllmEngine, str], folder: Path
) -> None:
    engine, dtype = engine_and_dtype
    if dtype != "float32":
        pytest.skip("in bfloat16 guidance multiplies the rounding, and the best token is often another")
    twin = load_twin(folder, dtype)
    requests = requests_for(twin, "image", "greedy", temperature=0.0)
    num_best = 0
    for request, result in zip(requests, await generate(engine, requests), strict=True):
        conditional = teacher_forced_logits(twin, request, result)
        unconditional = teacher_forced_logits(twin, request, result, unconditional=True)
        guided = guided_logits(conditional, unconditional, torch.tensor(GUIDANCE))
        tokens = torch.from_numpy(result.token_ids).long()
        behind = guided.max(-1).values - guided.gather(-1, tokens[:, None])[:, 0]
        assert behind.max() < TIE_TOLERANCE, request.request_id
        num_best += int((behind == 0).sum())
    assert num_best > 0.98 * len(requests) * NUM_IMAGE_TOKENS


async def test_logprobs_of_sampled_tokens_are_the_conditional_ones(
    engine_and_dtype: tuple[VllmEngine, str], folder: Path
) -> None:
    engine, dtype = engine_and_dtype
    twin = load_twin(folder, dtype)
    requests = [*requests_for(twin, "image", "sampled"), *requests_for(twin, "cot", "sampled")]
    assert_logprobs_agree(twin, requests, await generate(engine, requests), dtype)


async def test_the_same_seeds_in_the_same_batch_give_the_same_pictures(
    engine_and_dtype: tuple[VllmEngine, str], folder: Path
) -> None:
    engine, dtype = engine_and_dtype
    requests = requests_for(load_twin(folder, dtype), "image", "seeded")
    first = await generate(engine, requests)
    again = await generate(engine, [replace(request, request_id=f"{request.request_id}-again") for request in requests])
    others = await generate(
        engine,
        [replace(request, request_id=f"{request.request_id}-other", seed=request.seed + 99) for request in requests],
    )
    same = np.mean([np.mean(one.token_ids == two.token_ids) for one, two in zip(first, again, strict=True)])
    other = np.mean([np.mean(one.token_ids == two.token_ids) for one, two in zip(first, others, strict=True)])
    # Requests may join the engine's batch in other steps, whose kernels round otherwise.
    assert same > 0.9
    assert other < 0.5


async def test_new_weights_sample_and_score_as_the_learners_model_does(
    engine_and_dtype: tuple[VllmEngine, str], folder: Path
) -> None:
    engine, dtype = engine_and_dtype
    twin = load_twin(folder, dtype)
    await engine.update_weights(1, _perturb(twin, dtype))
    requests = [*requests_for(twin, "image", "updated"), *requests_for(twin, "cot", "updated")]
    results = await generate(engine, requests)
    assert {result.oldest_weight_version for result in results} == {1}
    assert_logprobs_agree(twin, requests, results, dtype)
    await engine.update_weights(2, _buckets_of(load_twin(folder, dtype), dtype))


async def test_an_engine_that_sleeps_gives_its_memory_up_and_wakes_with_its_weights_graphs_and_staged_update(
    folder: Path,
) -> None:
    config = CONFIG.model_copy(update={"colocate": True})
    engine = await VllmEngine.start(EngineSettings(str(folder), config, "bfloat16"))
    try:
        twin = load_twin(folder, "bfloat16")
        for name in ("first", "second"):
            requests = [*requests_for(twin, "image", name), *requests_for(twin, "cot", name)]
            assert_logprobs_agree(twin, requests, await generate(engine, requests), "bfloat16")
            awake = torch.cuda.mem_get_info()[0]
            await engine.sleep()
            assert torch.cuda.mem_get_info()[0] - awake > 0.9 * (config.kv_cache_bytes or 0)
            await engine.wake()
        await engine.sleep()
        updating = asyncio.create_task(engine.update_weights(1, _perturb(twin, "bfloat16")))
        assert not (await asyncio.wait({updating}, timeout=2.0))[0]
        await engine.wake()
        await asyncio.wait_for(updating, 60)
        requests = [*requests_for(twin, "image", "third"), *requests_for(twin, "cot", "third")]
        assert_logprobs_agree(twin, requests, await generate(engine, requests), "bfloat16")
    finally:
        await engine.close()


async def test_new_weights_come_by_cuda_ipc_from_another_process_on_the_card_and_one_that_dies_leaves_the_old_ones(
    engine_and_dtype: tuple[VllmEngine, str], folder: Path, tmp_path: Path
) -> None:
    engine, dtype = engine_and_dtype
    twin = load_twin(folder, dtype)
    requests = [*requests_for(twin, "image", "by-ipc"), *requests_for(twin, "cot", "by-ipc")]
    _perturb(twin, dtype)
    tensors = {name: tensor.detach() for name, tensor in twin.named_parameters() if name.startswith(TRAINED)}
    file = tmp_path / "trained.pt"
    torch.save({name: tensor.to("cpu", getattr(torch, dtype)) for name, tensor in tensors.items()}, file)
    layout: list[TensorInfo] = [(name, dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    version = engine.weight_version

    with _sender(file, layout, stops_after=len(layout) // 2) as place:
        await engine.collective.join_collective(place)
        with pytest.raises(WeightSyncError, match="the learner has left"):
            await asyncio.wait_for(engine.collective.receive_collective(version + 1, layout, IPC_BUCKET_BYTES), 60)
    assert engine.weight_version == version
    assert_logprobs_agree(load_twin(folder, dtype), requests, await generate(engine, requests), dtype)

    with _sender(file, layout) as place:
        await engine.collective.join_collective(place)
        await asyncio.wait_for(engine.collective.receive_collective(version + 1, layout, IPC_BUCKET_BYTES), 60)
        requests = [replace(request, request_id=f"{request.request_id}-new") for request in requests]
        results = await generate(engine, requests)
        assert {result.oldest_weight_version for result in results} == {version + 1}
        assert_logprobs_agree(twin, requests, results, dtype)
    await engine.update_weights(version + 2, _buckets_of(load_twin(folder, dtype), dtype))


@contextmanager
def _sender(file: Path, layout: list[TensorInfo], stops_after: int | None = None) -> Iterator[GroupPlace]:
    """The place of rank 1 in a group with a process that has these weights on the same card."""
    place = GroupPlace("127.0.0.1", free_port("127.0.0.1"), 0, 2, patience_s=60, transport="ipc")
    arguments = (place, str(file), layout, stops_after)
    process = multiprocessing.get_context("spawn").Process(target=_send, args=arguments, daemon=True)
    process.start()
    try:
        yield replace(place, rank=1)
    finally:
        process.kill()
        process.join(60)


def _send(place: GroupPlace, file: str, layout: list[TensorInfo], stops_after: int | None) -> None:
    device = torch.device("cuda", 0)
    tensors = torch.load(file, map_location=device)
    group = WeightGroup(place, device)
    group.meet()

    def in_turn() -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, _, _) in enumerate(layout):
            if number == stops_after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield name, tensors[name]

    group.send(in_turn(), layout, IPC_BUCKET_BYTES)
    time.sleep(600)  # as a learner would live on


@torch.no_grad()
def _perturb(model: JanusForConditionalGeneration, dtype: str) -> list[WeightBucket]:
    """Change the trained weights to other ones that `dtype` holds exactly; returns them as buckets."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.startswith(TRAINED):
            noise = 0.05 * torch.randn(parameter.shape, generator=generator).cuda()
            parameter.copy_((parameter + noise).to(getattr(torch, dtype)).float())
    return _buckets_of(model, dtype)


def _buckets_of(model: JanusForConditionalGeneration, dtype: str) -> list[WeightBucket]:
    trained = [
        (name, parameter.detach().to("cpu", getattr(torch, dtype)))
        for name, parameter in model.named_parameters()
        if name.startswith(TRAINED)
    ]
    return [pack_bucket(trained[start : start + 8]) for start in range(0, len(trained), 8)]
