"""A real vLLM engine against transformers' own Janus, on a tiny random model in float32."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pytest
import pytest_asyncio
import torch
from transformers import JanusForConditionalGeneration

from cluster.session.stop_signals import still_alive
from configs.errors import ConfigError, ModelError, RolloutError, WeightSyncError
from configs.local.ports import free_port
from configs.schema import RolloutConfig, VllmOptions
from learner.janus_policy import JanusPolicy
from learner.objective.phase_tokens import LogprobRequest, PhaseTokens
from rollout.engine import EngineSettings, SequenceRequest, SequenceResult
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.records import GroupPlace, Int32Array, TensorInfo, WeightBucket, WeightVersion
from rollout.transformers_engine import TransformersEngine
from rollout.vllm import VllmEngine
from rollout.vllm.scratch import PREFIX, SHARED_MEMORY, sweep_scratch
from rollout.vllm.settings import environment
from rollout.weights.buckets import pack_bucket
from rollout.weights.delta import DeltaBucket, DeltaEncoder, WeightReplica
from rollout.weights.groups import WeightGroup
from tests.integration.engine_weights import assert_has_bits, weights_of
from tests.tiny_models import tiny_janus_folder

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

CONFIG = RolloutConfig(
    max_prompt_tokens=64,
    max_cot_tokens=48,
    max_num_seqs=48,
    kv_cache_gib=0.25,
    enforce_eager=True,
    threads_per_worker=1,
    model_runner=os.environ.get("BICOT_MODEL_RUNNER", "first"),
)
"""`tests/integration/test_second_runner.py` runs this file with vLLM's newer model runner."""
NUM_IMAGE_TOKENS = 64
GUIDANCE = 5.0
TOLERANCE = 1e-4
TRAINABLE = ("model.language_model.", "lm_head.")


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny_janus_folder(num_kv_heads=2)


@pytest.fixture(scope="module")
def janus(folder: Path) -> JanusForConditionalGeneration:
    return JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def perturbed(janus: JanusForConditionalGeneration) -> Iterator[JanusForConditionalGeneration]:
    """`janus` with other weights, until the test ends."""
    original = {name: tensor.clone() for name, tensor in janus.state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in janus.named_parameters():
            if name.startswith(TRAINABLE):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    yield janus
    janus.load_state_dict(original)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    variables = environment(CONFIG)
    before = [os.environ.get(name) for name in variables]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # for `weights_of`
        engine = await VllmEngine.start(EngineSettings(str(folder), CONFIG, counts=True))
        assert [os.environ.get(name) for name in variables] == before
        yield engine
        await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def restored(engine: VllmEngine, folder: Path) -> AsyncIterator[VllmEngine]:
    """The engine, with its first weights brought back after the test."""
    yield engine
    first = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    await engine.update_weights(engine.weight_version + 1, buckets_of(first))


def ragged_prompts(count: int, seed: int, janus: JanusForConditionalGeneration, image: bool) -> list[Int32Array]:
    """Prompts of 4 to 40 tokens from BOS, image prompts up to begin-of-image."""
    rng = np.random.default_rng(seed)
    config = janus.generation_config
    first_word = 20
    prompts = []
    for length in rng.integers(3, 40, size=count):
        words = rng.integers(first_word, janus.config.text_config.vocab_size, size=length)
        end = [config.generation_kwargs["boi_token_id"]] if image else []
        prompts.append(np.array([config.bos_token_id, *words, *end], dtype=np.int32))
    return prompts


def requests_for(
    prompts: Sequence[Int32Array], phase: str, name: str, temperature: float = 1.0
) -> list[SequenceRequest]:
    num_new = NUM_IMAGE_TOKENS if phase == "image" else CONFIG.max_cot_tokens
    return [
        SequenceRequest(f"{name}-{phase}-{index}", phase, prompt, num_new, temperature, GUIDANCE, seed=1000 + index)
        for index, prompt in enumerate(prompts)
    ]


async def generate(engine: VllmEngine, requests: Sequence[SequenceRequest]) -> list[SequenceResult]:
    return await asyncio.gather(*map(engine.generate, requests))


async def draw_over_a_swap(
    engine: VllmEngine, janus: JanusForConditionalGeneration, name: str, num_pictures: int = 8
) -> tuple[list[SequenceRequest], list[SequenceResult]]:
    """Pictures that have about 8 tokens when the last bucket of `janus` arrives, and go on with the new weights."""
    prompts = ragged_prompts(num_pictures, 10, janus, image=True)
    # Twice as long as a picture, to be there when the weights are.
    requests = [replace(one, max_new_tokens=2 * NUM_IMAGE_TOKENS) for one in requests_for(prompts, "image", name)]
    clock = replace(requests_for(ragged_prompts(1, 11, janus, image=False), "cot", name)[0], max_new_tokens=8)
    running: list[asyncio.Task[SequenceResult]] = []

    async def buckets() -> AsyncIterator[WeightBucket]:
        *others, last = buckets_of(janus)
        for bucket in others:
            yield bucket
        running.extend(asyncio.create_task(engine.generate(request)) for request in requests)
        await engine.generate(clock)
        yield last

    await engine.update_weights(engine.weight_version + 1, buckets())
    return requests, await asyncio.gather(*running)


@torch.no_grad()
def teacher_forced(
    janus: JanusForConditionalGeneration, request: SequenceRequest, result: SequenceResult
) -> torch.Tensor:
    """float32 [N]: the conditional log-probability of each token, all in one forward pass."""
    prompt = torch.from_numpy(request.prompt_ids).long()
    tokens = torch.from_numpy(result.token_ids).long()
    embed = janus.get_input_embeddings()
    drawn = janus.prepare_embeddings_for_image_generation(tokens) if request.phase == "image" else embed(tokens)
    inputs = torch.cat([embed(prompt), drawn[:-1].reshape(len(tokens) - 1, -1)]).unsqueeze(0)
    hidden = janus.model.language_model(inputs_embeds=inputs).last_hidden_state[0, len(prompt) - 1 :]
    logits = janus.model.generation_head(hidden) if request.phase == "image" else janus.lm_head(hidden)
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def buckets_of(janus: JanusForConditionalGeneration) -> list[WeightBucket]:
    """The trainable weights, eight tensors a bucket: some buckets end within a layer."""
    trainable = [(name, tensor) for name, tensor in janus.named_parameters() if name.startswith(TRAINABLE)]
    return [pack_bucket(trainable[start : start + 8]) for start in range(0, len(trainable), 8)]


def assert_teacher_forcing_agrees(
    janus: JanusForConditionalGeneration, requests: Sequence[SequenceRequest], results: Sequence[SequenceResult]
) -> None:
    for request, result in zip(requests, results, strict=True):
        expected = teacher_forced(janus, request, result)
        np.testing.assert_allclose(result.logprobs, expected.numpy(), atol=TOLERANCE, err_msg=request.request_id)


def drawn_greedily_by_transformers(janus: JanusForConditionalGeneration, prompt: Int32Array) -> list[int]:
    ids = torch.from_numpy(prompt).long().unsqueeze(0)
    drawn = janus.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        guidance_scale=GUIDANCE,
        do_sample=False,
        max_new_tokens=NUM_IMAGE_TOKENS,
    )
    return drawn[0].tolist()


async def test_greedy_pictures_equal_transformers_own_guided_generation(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    requests = requests_for(ragged_prompts(32, 0, janus, image=True), "image", "greedy", temperature=0.0)
    results = await generate(engine, requests)
    for request, result in zip(requests, results, strict=True):
        assert result.token_ids.tolist() == drawn_greedily_by_transformers(janus, request.prompt_ids)


async def test_greedy_cots_equal_transformers_own_generation_up_to_and_with_eos(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    requests = requests_for(ragged_prompts(32, 1, janus, image=False), "cot", "greedy", temperature=0.0)
    results = await generate(engine, requests)
    for request, result in zip(requests, results, strict=True):
        ids = torch.from_numpy(request.prompt_ids).long().unsqueeze(0)
        expected = janus.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="text",
            do_sample=False,
            max_new_tokens=CONFIG.max_cot_tokens,
        )
        assert result.token_ids.tolist() == expected[0, ids.shape[1] :].tolist(), request.request_id


async def test_logprobs_of_sampled_tokens_are_the_conditional_ones(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    image_requests = requests_for(ragged_prompts(16, 2, janus, image=True), "image", "sampled")
    cot_requests = requests_for(ragged_prompts(16, 3, janus, image=False), "cot", "sampled")
    requests = [*image_requests, *cot_requests]
    results = await generate(engine, requests)
    assert_teacher_forcing_agrees(janus, requests, results)
    eos = janus.generation_config.eos_token_id
    ends = [result.token_ids[-1] == eos for result in results[16:]]
    lengths = [len(result.token_ids) for result in results[16:]]
    assert any(ends), "some CoT should reach EOS, or its log-probability goes untested"
    assert all(end or length == CONFIG.max_cot_tokens for end, length in zip(ends, lengths, strict=True))
    assert all(len(result.token_ids) == NUM_IMAGE_TOKENS for result in results[:16])


async def test_the_unconditional_logprobs_are_those_of_the_slow_engine(
    engine: VllmEngine, folder: Path, janus: JanusForConditionalGeneration
) -> None:
    requests = requests_for(ragged_prompts(3, 20, janus, image=True), "image", "both", temperature=0.0)
    slow = await TransformersEngine.start(EngineSettings(str(folder), CONFIG))
    try:
        expected = await asyncio.gather(*map(slow.generate, requests))
    finally:
        await slow.close()
    for result, twin in zip(await generate(engine, requests), expected, strict=True):
        assert result.token_ids.tolist() == twin.token_ids.tolist()
        np.testing.assert_allclose(result.logprobs, twin.logprobs, atol=TOLERANCE)
        np.testing.assert_allclose(result.unconditional_logprobs, twin.unconditional_logprobs, atol=TOLERANCE)


async def test_weights_that_are_the_same_change_no_token_of_a_running_picture(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    """They preempt it, and its context is computed again: chance must not be drawn anew."""
    requests, interrupted = await draw_over_a_swap(engine, janus, "interrupted")
    again = [replace(request, request_id=f"{request.request_id}-again") for request in requests]
    for result, undisturbed in zip(interrupted, await generate(engine, again), strict=True):
        assert result.oldest_weight_version < result.newest_weight_version
        assert result.token_ids.tolist() == undisturbed.token_ids.tolist()


async def test_an_engine_can_record_the_logprobs_of_what_it_samples_from(
    folder: Path, perturbed: JanusForConditionalGeneration
) -> None:
    """Guided, at the request's temperature: equal to the slow engine's teacher forcing through both streams. Its
    weights are loaded in a pause."""
    janus = perturbed
    settings = EngineSettings(str(folder), CONFIG, sampled_logprobs=True, stages_weights=False)
    engine = await VllmEngine.start(settings)
    try:
        await engine.update_weights(1, buckets_of(janus))
        requests = [
            *requests_for(ragged_prompts(6, 2, janus, image=True), "image", "guided", temperature=0.8),
            *requests_for(ragged_prompts(6, 2, janus, image=True), "image", "guided-at-1"),
            *requests_for(ragged_prompts(6, 3, janus, image=False), "cot", "guided", temperature=0.8),
        ]
        results = await generate(engine, requests)
    finally:
        await engine.close()
    special_ids = JanusCheckpoint(folder).special_ids
    policy = JanusPolicy(janus, special_ids=special_ids, logprob_chunk_bytes=2**20)
    for request, result in zip(requests, results, strict=True):
        expected = sampled_logprobs(policy, request, result)
        np.testing.assert_allclose(result.logprobs, expected, atol=TOLERANCE, err_msg=request.request_id)


@torch.no_grad()
def sampled_logprobs(policy: JanusPolicy, request: SequenceRequest, result: SequenceResult) -> np.ndarray:
    """As the learner finds them, with `algorithm.policy: guided`."""
    ids, targets = (torch.from_numpy(values).long()[None] for values in (request.prompt_ids, result.token_ids))
    tokens = PhaseTokens(request.phase, ids, torch.tensor([ids.shape[1]]), targets, torch.ones_like(targets).bool())
    scales = torch.tensor([request.guidance_scale]) if request.phase == "image" else None
    logprobs, _ = policy(LogprobRequest(tokens, guidance_scales=scales, temperature=request.temperature))
    return logprobs[0].numpy()


async def test_a_seed_decides_the_tokens_whatever_else_is_in_the_batch(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    requests = requests_for(ragged_prompts(12, 4, janus, image=True), "image", "crowd")
    crowd = await generate(engine, requests)
    alone = await engine.generate(replace(requests[7], request_id="alone"))
    other = await engine.generate(replace(requests[7], request_id="other", seed=1))
    assert alone.token_ids.tolist() == crowd[7].token_ids.tolist()
    np.testing.assert_allclose(alone.logprobs, crowd[7].logprobs, atol=TOLERANCE)
    assert other.token_ids.tolist() != alone.token_ids.tolist()


async def test_an_engine_without_guidance_runs_one_stream_and_draws_as_one_with_both(
    engine: VllmEngine, folder: Path, janus: JanusForConditionalGeneration
) -> None:
    """And one that reads prompts in parts: a step has 48 tokens for 36 requests."""
    in_parts = VllmOptions(max_num_batched_tokens=CONFIG.max_num_seqs)
    config = CONFIG.model_copy(update={"guidance_scale": 1.0, "vllm": in_parts})
    requests = [
        *requests_for(ragged_prompts(24, 18, janus, image=True), "image", "alone"),
        *requests_for(ragged_prompts(12, 19, janus, image=False), "cot", "alone"),
    ]
    unguided = [replace(request, guidance_scale=1.0) for request in requests]
    expected = await generate(engine, unguided)
    other = await VllmEngine.start(EngineSettings(str(folder), config))
    try:
        results = await generate(other, unguided)
        with pytest.raises(ValueError, match=r"guidance 5 of an engine .* rollout\.guidance_scale is 1"):
            await other.generate(requests[0])
    finally:
        await other.close()
    assert [r.token_ids.tolist() for r in results] == [r.token_ids.tolist() for r in expected]
    assert all(r.unconditional_logprobs is None for r in results)
    assert_teacher_forcing_agrees(janus, unguided, results)


async def test_pictures_that_join_as_their_cots_end_are_those_drawn_alone(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    cots = requests_for(ragged_prompts(24, 6, janus, image=False), "cot", "mixed")
    cots = [replace(request, max_new_tokens=2 + 2 * index) for index, request in enumerate(cots)]
    pictures = requests_for(ragged_prompts(24, 7, janus, image=True), "image", "mixed")

    async def roll(cot: SequenceRequest, picture: SequenceRequest) -> SequenceResult:
        await engine.generate(cot)
        return await engine.generate(picture)

    mixed = await asyncio.gather(*map(roll, cots, pictures))
    for index in (0, 11, 23):
        alone = await engine.generate(replace(pictures[index], request_id=f"alone-{index}"))
        assert mixed[index].token_ids.tolist() == alone.token_ids.tolist()


async def test_pictures_of_one_plan_share_its_keys_and_values(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    """`images_per_cot`: the first of them computes the prompt's full blocks, the others find them."""
    start, end = (ragged_prompts(2, 23, janus, image=image)[1] for image in (False, True))
    words = np.random.default_rng(24).integers(20, janus.config.text_config.vocab_size, size=40)
    plan = np.concatenate([start, words, end[1:]]).astype(np.int32)
    requests = requests_for([plan] * 4, "image", "of one plan")
    assert engine.figures is not None
    hits = engine.figures.prefix_hits
    results = await generate(engine, requests)
    assert engine.figures.prefix_hits - hits == 3 * ((len(plan) - 1) // 32 * 32)
    assert len({result.token_ids.tobytes() for result in results}) == 4
    assert_teacher_forcing_agrees(janus, requests, results)


async def test_a_picture_whose_prompt_begins_as_a_text_did_has_its_own_keys_and_values(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    """On a CPU the text's blocks hold nothing of the unconditional stream."""
    words = np.random.default_rng(25).integers(20, janus.config.text_config.vocab_size, size=50)
    end = ragged_prompts(1, 26, janus, image=True)[0]
    prompt = np.concatenate([end[:1], words, end[1:]]).astype(np.int32)
    await engine.generate(requests_for([prompt[:-1]], "cot", "same start")[0])
    drawn = await engine.generate(requests_for([prompt], "image", "same start", temperature=0.0)[0])
    assert drawn.token_ids.tolist() == drawn_greedily_by_transformers(janus, prompt)


async def test_the_likeliest_tokens_alone_are_sampled_and_scored_among_all(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    requests = requests_for(ragged_prompts(4, 16, janus, image=False), "cot", "top-k")
    greedy = await generate(engine, [replace(request, temperature=0.0) for request in requests])
    likeliest = await generate(engine, [replace(request, top_k=1) for request in requests])
    assert [r.token_ids.tolist() for r in likeliest] == [r.token_ids.tolist() for r in greedy]
    assert_teacher_forcing_agrees(janus, requests, likeliest)


async def test_new_weights_sample_and_score_as_the_learners_model_does(
    restored: VllmEngine, perturbed: JanusForConditionalGeneration
) -> None:
    version = restored.weight_version + 1
    await restored.update_weights(version, buckets_of(perturbed))
    requests = [
        *requests_for(ragged_prompts(8, 8, perturbed, image=True), "image", "updated"),
        *requests_for(ragged_prompts(8, 9, perturbed, image=False), "cot", "updated"),
    ]
    results = await generate(restored, requests)
    assert_teacher_forcing_agrees(perturbed, requests, results)
    assert restored.weight_version == version
    assert {(r.oldest_weight_version, r.newest_weight_version) for r in results} == {(version, version)}


async def test_an_engine_that_was_sent_changes_alone_computes_with_the_learners_weights_to_the_bit(
    restored: VllmEngine, perturbed: JanusForConditionalGeneration
) -> None:
    encoder, replica = DeltaEncoder(), WeightReplica()
    generator = torch.Generator().manual_seed(7)
    base: WeightVersion | None = None
    for _ in range(3):
        version = WeightVersion(0, restored.weight_version + 1)
        sent = list(encoder.encode(version, base, buckets_of(perturbed)))

        async def arriving(sent: Sequence[WeightBucket | DeltaBucket] = sent) -> AsyncIterator[Any]:
            for bucket in sent:
                yield bucket

        await restored.update_weights(version.number, replica.follow(version, arriving()))
        (held,) = await restored._llm.collective_rpc(weights_of)
        assert_has_bits(held, perturbed, TRAINABLE)
        base = version
        for name, parameter in perturbed.named_parameters():
            if name.startswith(TRAINABLE):  # a hundredth of the values, by their last bit
                bits = parameter.data.view(torch.int32)
                bits ^= (torch.rand(bits.shape, generator=generator) < 0.01).int()
    assert not encoder.summary.is_whole
    assert 0.005 < encoder.summary.num_changed / encoder.summary.num_values < 0.02
    with pytest.raises(AssertionError, match="Mismatched elements"):  # the learner has taken one more step
        assert_has_bits(held, perturbed, TRAINABLE)


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
async def test_new_weights_that_come_by_a_broadcast_are_those_and_one_that_stalls_leaves_the_old_ones(
    restored: VllmEngine, perturbed: JanusForConditionalGeneration, transport: Literal["nccl", "ipc"]
) -> None:
    """Over gloo, and by handles of host memory; on GPUs the same goes over NCCL and by CUDA IPC."""
    version = restored.weight_version + 1
    trainable = [(name, tensor) for name, tensor in perturbed.named_parameters() if name.startswith(TRAINABLE)]
    layout: list[TensorInfo] = [(name, "float32", tuple(tensor.shape)) for name, tensor in trainable]
    requests = requests_for(ragged_prompts(4, 12, perturbed, image=True), "image", "broadcast")

    def place(rank: int) -> GroupPlace:
        return GroupPlace("127.0.0.1", port, rank, 2, patience_s=30, transport=transport)

    port = free_port("127.0.0.1")
    group = WeightGroup(place(0), torch.device("cpu"))
    await asyncio.gather(asyncio.to_thread(group.meet), restored.join_collective(place(1)))
    stalled = asyncio.create_task(restored.receive_collective(version, layout, 100_000))
    await asyncio.sleep(0)
    await generate(restored, requests)  # sampling goes on meanwhile
    assert not stalled.done()
    await restored.abort_collective()
    with pytest.raises(WeightSyncError, match="could not stage new weights"):
        await asyncio.wait_for(stalled, 20)
    group.abort()
    assert restored.weight_version == version - 1

    port = free_port("127.0.0.1")
    group = WeightGroup(place(0), torch.device("cpu"))
    await asyncio.gather(asyncio.to_thread(group.meet), restored.join_collective(place(1)))
    sending = asyncio.to_thread(group.send, iter(trainable), layout, 100_000)
    await asyncio.gather(sending, restored.receive_collective(version, layout, 100_000))
    assert_teacher_forcing_agrees(perturbed, requests, await generate(restored, requests))
    assert restored.weight_version == version
    group.abort()


async def test_a_running_picture_goes_on_with_the_new_weights_and_says_so(
    restored: VllmEngine, folder: Path, perturbed: JanusForConditionalGeneration
) -> None:
    old = restored.weight_version
    requests, results = await draw_over_a_swap(restored, perturbed, "swapped")
    before = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    for request, result in zip(requests, results, strict=True):
        assert (result.oldest_weight_version, result.newest_weight_version) == (old, old + 1)
        under_old = teacher_forced(before, request, result).numpy()
        under_new = teacher_forced(perturbed, request, result).numpy()
        swap = int(np.argmax(result.weight_versions))
        assert 0 < swap < len(result.token_ids)
        np.testing.assert_allclose(result.logprobs[:swap], under_old[:swap], atol=TOLERANCE)
        np.testing.assert_allclose(result.logprobs[swap:], under_new[swap:], atol=TOLERANCE)


async def test_an_engine_that_sleeps_samples_nothing_and_takes_new_weights_when_it_wakes(
    restored: VllmEngine, folder: Path, perturbed: JanusForConditionalGeneration
) -> None:
    old = restored.weight_version
    pictures = requests_for(ragged_prompts(4, 12, perturbed, image=True), "image", "asleep")
    # Twice as long as a picture, to be there when the engine is told to sleep.
    requests = [replace(one, max_new_tokens=2 * NUM_IMAGE_TOKENS) for one in pictures]
    running = [asyncio.create_task(restored.generate(request)) for request in requests]
    clock = replace(requests_for(ragged_prompts(1, 11, perturbed, image=False), "cot", "tick")[0], max_new_tokens=8)
    await restored.generate(clock)
    for _ in range(2):
        await restored.sleep()
    updating = asyncio.create_task(restored.update_weights(old + 1, buckets_of(perturbed)))
    late = asyncio.create_task(restored.generate(replace(clock, request_id="late")))
    await restored.check_alive()
    done, _ = await asyncio.wait({*running, updating, late}, timeout=1.0)
    assert (done, restored.weight_version) == (set(), old)
    for _ in range(2):
        await restored.wake()
    await updating
    await late
    before = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    for request, result in zip(requests, await asyncio.gather(*running), strict=True):
        assert (result.oldest_weight_version, result.newest_weight_version) == (old, old + 1)
        swap = int(np.argmax(result.weight_versions))
        for model, part in ((before, slice(0, swap)), (perturbed, slice(swap, None))):
            expected = teacher_forced(model, request, result).numpy()
            np.testing.assert_allclose(result.logprobs[part], expected[part], atol=TOLERANCE)


async def test_an_engine_that_keeps_its_cache_says_which_tokens_have_a_stale_context(
    folder: Path, perturbed: JanusForConditionalGeneration
) -> None:
    config = CONFIG.model_copy(update={"recompute_on_swap": False})
    engine = await VllmEngine.start(EngineSettings(str(folder), config))
    try:
        requests, results = await draw_over_a_swap(engine, perturbed, "kept", num_pictures=4)
        again = [replace(request, request_id=f"{request.request_id}-again") for request in requests]
        fresh = await generate(engine, again)  # the same prompts: their old prefixes must not be found
    finally:
        await engine.close()
    assert_teacher_forcing_agrees(perturbed, again, fresh)
    assert {result.context_version for result in fresh} == {1}
    for request, result in zip(requests, results, strict=True):
        assert result.context_version == 0
        is_stale = result.weight_versions > 0
        assert 0 < is_stale.sum() < len(result.token_ids)
        under_new = teacher_forced(perturbed, request, result).numpy()
        assert np.abs(result.logprobs - under_new)[is_stale].mean() > 10 * TOLERANCE


async def test_sampling_goes_on_while_new_weights_arrive(
    restored: VllmEngine, perturbed: JanusForConditionalGeneration
) -> None:
    old = restored.weight_version
    (request,) = requests_for(ragged_prompts(1, 23, perturbed, image=True), "image", "meanwhile")
    drawn = []

    async def slowly() -> AsyncIterator[WeightBucket]:
        first, *others = buckets_of(perturbed)
        yield first
        drawn.append(await restored.generate(request))
        for bucket in others:
            yield bucket

    async with asyncio.timeout(120):
        await restored.update_weights(old + 1, slowly())
    assert set(drawn[0].weight_versions) == {old}
    after = replace(request, request_id="after-it")
    assert_teacher_forcing_agrees(perturbed, [after], [await restored.generate(after)])


async def test_a_refused_bucket_leaves_the_engine_as_it_was(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    request = requests_for(ragged_prompts(1, 12, janus, image=True), "image", "before")[0]
    before = await engine.generate(request)
    version = engine.weight_version
    buckets = buckets_of(janus)
    stranger = pack_bucket([("lm_head.bias", torch.zeros(3))])
    with pytest.raises(WeightSyncError, match=r"'lm_head\.bias' is no"):
        await engine.update_weights(version + 1, [*buckets, stranger])
    with pytest.raises(WeightSyncError, match="is missing"):
        await engine.update_weights(version + 1, buckets[1:])
    assert engine.weight_version == version
    after = await engine.generate(replace(request, request_id="after"))
    assert after.token_ids.tolist() == before.token_ids.tolist()
    assert after.newest_weight_version == version


async def test_a_cancelled_request_leaves_the_engine(engine: VllmEngine, janus: JanusForConditionalGeneration) -> None:
    requests = requests_for(ragged_prompts(4, 13, janus, image=True), "image", "cancelled")
    tasks = [asyncio.create_task(engine.generate(request)) for request in requests]
    clock = replace(requests_for(ragged_prompts(1, 14, janus, image=False), "cot", "clock")[0], max_new_tokens=4)
    await engine.generate(clock)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    again = await generate(engine, requests)  # under the same ids, which are free again
    assert_teacher_forcing_agrees(janus, requests, again)


async def test_a_request_that_does_not_fit_is_refused_with_its_numbers(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    long = requests_for(ragged_prompts(1, 15, janus, image=True), "image", "long")[0]
    with pytest.raises(ValueError, match="500 new ones do not fit the engine's context of 208"):
        await engine.generate(replace(long, max_new_tokens=500))
    with pytest.raises(ValueError, match="does not end with begin-of-image"):
        await engine.generate(replace(long, prompt_ids=long.prompt_ids[:-1]))


async def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no_such_model"):
        await VllmEngine.start(EngineSettings(str(tmp_path / "no_such_model"), CONFIG))


async def test_a_context_that_the_model_lacks_is_refused_with_its_numbers(folder: Path) -> None:
    config = CONFIG.model_copy(update={"max_cot_tokens": 200})
    with pytest.raises(ConfigError, match="64 image tokens = 328, but the model has 256 positions"):
        await VllmEngine.start(EngineSettings(str(folder), config))


BARE = """
import asyncio, json, sys, threading
import numpy as np
from configs.schema import RolloutConfig
from rollout.engine import EngineSettings, SequenceRequest
from rollout.transformers_engine import TransformersEngine
from rollout.vllm import VllmEngine

async def main(folder, config, prompt):
    engine = await VllmEngine.start(EngineSettings(folder, RolloutConfig.model_validate_json(config)))
    request = SequenceRequest("bare", "image", np.array(json.loads(prompt), np.int32), 64, 1.0, 5.0, seed=1000)
    print("tokens", json.dumps((await engine.generate(request)).token_ids.tolist()), flush=True)
    threading.Event().wait(600)

if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
"""


async def test_an_engine_without_the_entry_point_draws_the_same_and_ends_with_its_killed_process(
    engine: VllmEngine, folder: Path, janus: JanusForConditionalGeneration, tmp_path: Path
) -> None:
    """As in a Ray job whose nodes have bicot on PYTHONPATH only, and whose worker Ray kills. What it leaves in the
    temporary folder lies together, and is swept by whoever starts an engine next."""
    (prompt,) = ragged_prompts(1, 17, janus, image=True)
    (request,) = requests_for([prompt], "image", "installed")
    expected = await engine.generate(request)
    script = tmp_path / "bare.py"
    script.write_text(BARE)
    folder_of_test = tempfile.TemporaryDirectory(prefix="bt-")  # short, because of the sockets
    temporary = Path(folder_of_test.name)
    bare = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "VLLM_PLUGINS": "", "TMPDIR": str(temporary)}
    arguments = [str(folder), CONFIG.model_dump_json(), str(prompt.tolist())]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), *arguments, env=bare, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(400):
        while not (line := await process.stdout.readline()).startswith(b"tokens"):
            assert line, "the process ended before it had drawn"
    assert json.loads(line.removeprefix(b"tokens")) == expected.token_ids.tolist()
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("EngineCor" in child.name() for child in children)
    (name,) = (path.name for path in temporary.iterdir())
    assert list(SHARED_MEMORY.glob(f"sem.{name}-*")), "vLLM's engine core has a semaphore"
    process.kill()
    await process.wait()
    alive = await asyncio.to_thread(still_alive, children, 60)
    assert not alive
    (left,) = temporary.iterdir()
    assert left.name.startswith(PREFIX)
    assert len(list(left.iterdir())) > 1, "sockets, and the owner's name"
    sweep_scratch(temporary)
    assert not list(temporary.iterdir())


def engine_processes() -> list[psutil.Process]:
    """Others of this process's children are Python's own tracker of shared memory and the session's Ray."""
    children = psutil.Process().children(recursive=True)
    # One that has ended already, and was not yet collected, has no command line.
    running = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in running if "EngineCore" in " ".join([child.name(), *child.cmdline()])]


async def test_an_engine_that_is_frozen_answers_when_it_is_woken_and_not_before(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    drawing = asyncio.create_task(
        engine.generate(requests_for(ragged_prompts(1, 18, janus, image=True), "image", "busy")[0])
    )
    await asyncio.wait_for(engine.check_alive(), 60)
    for process in engine_processes():
        process.suspend()
    answer = asyncio.create_task(engine.check_alive())
    try:
        assert not (await asyncio.wait({answer}, timeout=2))[0]
        assert engine.is_usable, "vLLM itself sees nothing"
    finally:
        for process in engine_processes():
            process.resume()
    await asyncio.wait_for(answer, 60)
    await asyncio.wait_for(drawing, 60)


async def test_closing_ends_requests_and_processes_and_may_be_repeated(
    engine: VllmEngine, janus: JanusForConditionalGeneration
) -> None:
    processes = engine_processes()
    assert processes
    scratch = engine._scratch.path
    assert scratch.is_dir()
    request = requests_for(ragged_prompts(1, 16, janus, image=True), "image", "last")[0]
    running = asyncio.create_task(engine.generate(request))
    await asyncio.sleep(0)  # lets it reach the engine
    await engine.close()
    with pytest.raises(RolloutError, match="closed before it ended request last-image-0"):
        await running
    await engine.close()
    with pytest.raises(RolloutError, match="not running"):
        await engine.generate(request)
    with pytest.raises(RolloutError, match="not running"):
        await engine.check_alive()
    alive = still_alive(processes, patience_s=30)
    assert not alive
    assert not scratch.exists()
    assert not list(SHARED_MEMORY.glob(f"sem.{scratch.name}-*"))
