"""The slow engine agrees with transformers' own generation and with teacher forcing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import JanusForConditionalGeneration

from configs.errors import ModelError, RolloutError, WeightSyncError
from configs.schema import RolloutConfig, TinyJanusConfig
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.engine import EngineSettings, SequenceRequest
from rollout.prompts import Conversation
from rollout.transformers_engine import TransformersEngine
from rollout.weights.buckets import pack_bucket
from tests.transformers_streams import unconditional_context

CONFIG = TinyJanusConfig(hidden_size=64, num_layers=2, num_codes=32, image_size=16, patch_size=4)
NUM_IMAGE_TOKENS = 16
ROLLOUT = RolloutConfig(engine="transformers")
WORDS = ["red", "blue", "green", "circle", "square", "star", "top", "left"]
PROMPTS = ["red circle", "blue square top left, red star", "star", "green star left, red circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_random_tiny_janus(folder, CONFIG, WORDS)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> JanusForConditionalGeneration:
    return JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def conversation(folder: Path) -> Conversation:
    return Conversation.from_pretrained(str(folder), system_prompt="", instruction="{prompt}")


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[TransformersEngine]:
    engine = await TransformersEngine.start(EngineSettings(str(folder), ROLLOUT))
    yield engine
    await engine.close()


def image_request(prompt_ids: np.ndarray, seed: int = 0, temperature: float = 1.0) -> SequenceRequest:
    return SequenceRequest(f"image-{seed}", "image", prompt_ids, NUM_IMAGE_TOKENS, temperature, 5.0, seed)


def cot_request(prompt_ids: np.ndarray, seed: int = 0, temperature: float = 1.0) -> SequenceRequest:
    return SequenceRequest(f"cot-{seed}", "cot", prompt_ids, 12, temperature, 1.0, seed)


def row(ids: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(ids, dtype=torch.long)[None]


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_greedy_pictures_equal_those_of_transformers(
    engine: TransformersEngine, model: JanusForConditionalGeneration, conversation: Conversation, prompt: str
):
    prompt_ids = conversation.image_prompt(prompt, "top left")
    drawn = await engine.generate(image_request(prompt_ids, temperature=0))
    expected = model.generate(
        row(prompt_ids), attention_mask=torch.ones_like(row(prompt_ids)), generation_mode="image",
        guidance_scale=5.0, do_sample=False,
    )  # fmt: skip
    assert drawn.token_ids.tolist() == expected[0].tolist()


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_greedy_cots_equal_those_of_transformers(
    engine: TransformersEngine, model: JanusForConditionalGeneration, conversation: Conversation, prompt: str
):
    prompt_ids = conversation.semantic_prompt(prompt)
    written = await engine.generate(cot_request(prompt_ids, temperature=0))
    expected = model.generate(
        row(prompt_ids), attention_mask=torch.ones_like(row(prompt_ids)), max_new_tokens=12, do_sample=False
    )
    assert written.token_ids.tolist() == expected[0, len(prompt_ids) :].tolist()


async def test_image_logprobs_are_conditional_and_equal_teacher_forcing(
    engine: TransformersEngine, model: JanusForConditionalGeneration, conversation: Conversation
):
    prompt_ids = conversation.image_prompt(PROMPTS[1], "star left")
    drawn = await engine.generate(image_request(prompt_ids, seed=3))
    codes = torch.as_tensor(drawn.token_ids, dtype=torch.long)
    with torch.no_grad():
        prompt = model.get_input_embeddings()(row(prompt_ids))
        picture = model.prepare_embeddings_for_image_generation(codes[None])
        hidden = model.model.language_model(inputs_embeds=torch.cat([prompt, picture], 1)).last_hidden_state[0]
        logits = model.model.generation_head(hidden[len(prompt_ids) - 1 : -1])
    expected = logits.log_softmax(-1).gather(1, codes[:, None])[:, 0]
    np.testing.assert_allclose(drawn.logprobs, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_sampled_logprobs_are_those_of_the_guided_mix_at_its_temperature(
    folder: Path, model: JanusForConditionalGeneration, conversation: Conversation, temperature: float
):
    """By transformers' own forward, over the whole of both streams."""
    engine = await TransformersEngine.start(EngineSettings(str(folder), ROLLOUT, sampled_logprobs=True))
    prompt_ids = conversation.image_prompt(PROMPTS[1], "star left")
    drawn = await engine.generate(image_request(prompt_ids, seed=3, temperature=temperature))
    written = await engine.generate(cot_request(conversation.semantic_prompt(PROMPTS[0]), temperature=temperature))
    await engine.close()
    codes = torch.as_tensor(drawn.token_ids, dtype=torch.long)
    streams = []
    with torch.no_grad():
        for context in (prompt_ids, unconditional_context(model, prompt_ids).numpy()):
            prompt = model.get_input_embeddings()(row(context))
            picture = model.prepare_embeddings_for_image_generation(codes[None])
            hidden = model.model.language_model(inputs_embeds=torch.cat([prompt, picture], 1)).last_hidden_state[0]
            streams.append(model.model.generation_head(hidden[len(context) - 1 : -1]))
        whole = np.concatenate([conversation.semantic_prompt(PROMPTS[0]), written.token_ids])
        cot_logits = model(input_ids=row(whole)).logits[0, -len(written.token_ids) - 1 : -1]
    guided = streams[1] + 5.0 * (streams[0] - streams[1])
    expected = (guided / temperature).log_softmax(-1).gather(1, codes[:, None])[:, 0]
    np.testing.assert_allclose(drawn.logprobs, expected.numpy(), atol=1e-4)
    words = torch.as_tensor(written.token_ids, dtype=torch.long)
    expected = (cot_logits / temperature).log_softmax(-1).gather(1, words[:, None])[:, 0]
    np.testing.assert_allclose(written.logprobs, expected.numpy(), atol=1e-4)


async def test_cot_logprobs_equal_teacher_forcing_at_any_temperature(
    engine: TransformersEngine, model: JanusForConditionalGeneration, conversation: Conversation
):
    prompt_ids = conversation.semantic_prompt(PROMPTS[0])
    written = await engine.generate(cot_request(prompt_ids, seed=1, temperature=0.5))
    with torch.no_grad():
        logits = model(row(np.concatenate([prompt_ids, written.token_ids]))).logits[0, len(prompt_ids) - 1 : -1]
    tokens = torch.as_tensor(written.token_ids, dtype=torch.long)
    expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    np.testing.assert_allclose(written.logprobs, expected.numpy(), atol=1e-4)


async def test_the_likeliest_tokens_alone_are_sampled_and_scored_among_all(
    engine: TransformersEngine, model: JanusForConditionalGeneration, conversation: Conversation
):
    prompt_ids = conversation.semantic_prompt(PROMPTS[0])
    written = await engine.generate(replace(cot_request(prompt_ids, seed=2), top_k=3))
    with torch.no_grad():
        logits = model(row(np.concatenate([prompt_ids, written.token_ids]))).logits[0, len(prompt_ids) - 1 : -1]
    tokens = torch.as_tensor(written.token_ids, dtype=torch.long)[:, None]
    assert bool((logits.topk(3).indices == tokens).any(1).all())
    np.testing.assert_allclose(written.logprobs, logits.log_softmax(-1).gather(1, tokens)[:, 0].numpy(), atol=1e-4)


async def test_a_seed_decides_the_tokens_whatever_else_runs(engine: TransformersEngine, conversation: Conversation):
    prompt_ids = conversation.image_prompt(PROMPTS[0], "")
    alone = await engine.generate(image_request(prompt_ids, seed=5))
    together = await asyncio.gather(*(engine.generate(image_request(prompt_ids, seed=seed)) for seed in (4, 5, 6)))
    assert together[1].token_ids.tolist() == alone.token_ids.tolist()
    assert together[0].token_ids.tolist() != alone.token_ids.tolist()


async def test_a_cot_ends_with_eos_or_at_its_limit(engine: TransformersEngine, conversation: Conversation):
    prompt_ids = conversation.semantic_prompt(PROMPTS[0])
    request = replace(cot_request(prompt_ids), max_new_tokens=40)
    results = await asyncio.gather(*(engine.generate(replace(request, seed=seed)) for seed in range(20)))
    ended = [result for result in results if len(result.token_ids) < 40]
    assert ended, "no CoT of twenty ended"
    for result in results:
        assert conversation.eos_id not in result.token_ids[:-1]
    assert all(result.token_ids[-1] == conversation.eos_id for result in ended)


async def test_new_weights_take_over_between_two_tokens(
    engine: TransformersEngine, folder: Path, model: JanusForConditionalGeneration, conversation: Conversation
):
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    old = model.get_parameter(name)
    bucket = pack_bucket([(name, old + 0.5 * torch.randn(old.shape, generator=torch.Generator().manual_seed(0)))])
    prompt_ids = conversation.image_prompt(PROMPTS[1], "")
    before = await engine.generate(image_request(prompt_ids, temperature=0))
    running = asyncio.create_task(engine.generate(image_request(prompt_ids, temperature=0)))
    # Sequences take turns: when a second one has five tokens, the first has about as many.
    await engine.generate(replace(image_request(prompt_ids, seed=1), max_new_tokens=5))
    await engine.update_weights(7, [bucket])
    across = await running
    after = await engine.generate(image_request(prompt_ids, temperature=0))

    assert engine.weight_version == 7
    assert before.newest_weight_version == 0
    assert (across.oldest_weight_version, across.newest_weight_version) == (0, 7)
    assert after.oldest_weight_version == 7
    assert across.token_ids[:4].tolist() == before.token_ids[:4].tolist()
    assert across.token_ids.tolist() != before.token_ids.tolist()
    assert after.token_ids.tolist() != before.token_ids.tolist()


async def test_weights_that_do_not_fit_are_refused_and_change_nothing(
    engine: TransformersEngine, model: JanusForConditionalGeneration, conversation: Conversation
):
    request = image_request(conversation.image_prompt(PROMPTS[0], ""))
    before = await engine.generate(request)
    fitting = ("lm_head.weight", torch.zeros_like(model.lm_head.weight))
    with pytest.raises(WeightSyncError, match=r"'nothing\.weight' of version 3 is not in the model"):
        await engine.update_weights(3, [pack_bucket([fitting, ("nothing.weight", torch.zeros(1))])])
    with pytest.raises(WeightSyncError, match="has shape"):
        await engine.update_weights(3, [pack_bucket([("lm_head.weight", torch.zeros(2, 2))])])
    after = await engine.generate(request)
    assert engine.weight_version == 0
    assert before.token_ids.tolist() == after.token_ids.tolist()


async def test_requests_that_cannot_work_are_refused(engine: TransformersEngine, conversation: Conversation):
    with pytest.raises(ValueError, match="context holds 256"):
        await engine.generate(replace(cot_request(conversation.semantic_prompt("star")), max_new_tokens=999))
    with pytest.raises(ValueError, match="does not end with begin-of-image"):
        await engine.generate(image_request(conversation.semantic_prompt("star")))


async def test_a_folder_without_weights_is_named(folder: Path, tmp_path: Path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match=str(tmp_path)):
        await TransformersEngine.start(EngineSettings(str(tmp_path), ROLLOUT))


async def test_a_closed_engine_says_so_and_may_be_closed_again(folder: Path, conversation: Conversation):
    engine = await TransformersEngine.start(EngineSettings(str(folder), ROLLOUT))
    running = asyncio.create_task(engine.generate(image_request(conversation.image_prompt("star", ""))))
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(RolloutError, match="it was closed"):
        await running
    with pytest.raises(RolloutError, match="it was closed"):
        await engine.update_weights(1, [])
    await engine.close()
