"""The policy's log-probabilities, conditional and guided, against transformers' own forward: one trajectory at a time,
without padding, all logits at once, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from configs.errors import ModelError
from configs.schema import TinyJanusConfig
from learner.batch import right_pad
from learner.janus_policy import JanusPolicy
from learner.objective import LossSettings, bicot_grpo_terms
from learner.objective.loss import TokenTensors
from learner.objective.phase_tokens import PhaseTokens
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.prompts import Conversation

SHAPE = TinyJanusConfig(hidden_size=64, num_layers=2, num_heads=2, num_codes=32, image_size=16, max_positions=64)
NUM_IMAGE_TOKENS = 16
SCALES = (5.0, 2.0, 1.0)
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    save_random_tiny_janus(folder, SHAPE, [f"word{index}" for index in range(40)], weight_std=0.04)
    return folder


@pytest.fixture
def model(folder: Path) -> JanusForConditionalGeneration:
    return JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval()


@pytest.fixture
def policy(folder: Path) -> JanusPolicy:
    return JanusPolicy.load(str(folder), torch.float64, logprob_chunk_tokens=7)


def ragged(phase: str, conversation: Conversation) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Contexts and targets of three trajectories."""
    rng = np.random.default_rng(0)
    contexts = [rng.integers(9, 40, length).astype(np.int32) for length in (4, 9, 6)]
    for context in contexts:
        context[0] = conversation.bos_id
        context[-1] = conversation.boi_id if phase == "image" else context[-1]
    lengths, high = ((16, 16, 16), SHAPE.num_codes) if phase == "image" else ((5, 2, 8), 40)
    return contexts, [rng.integers(9 if phase == "cot" else 0, high, length).astype(np.int32) for length in lengths]


def tokens_of(phase: str, contexts: list[np.ndarray], targets: list[np.ndarray]) -> PhaseTokens:
    padded, lengths = right_pad(targets, max(map(len, targets)))
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return PhaseTokens(phase, *right_pad(contexts, max(map(len, contexts))), padded, mask)


def slow_logits(model: JanusForConditionalGeneration, phase: str, context: np.ndarray, targets: np.ndarray) -> Tensor:
    """[N, V] of one stream."""
    embed = model.get_input_embeddings()
    ids, drawn = (torch.from_numpy(values).long()[None] for values in (context, targets))
    continuation = embed(drawn) if phase == "cot" else model.prepare_embeddings_for_image_generation(drawn)
    inputs = torch.cat([embed(ids), continuation], 1)
    hidden = model.model.language_model(inputs_embeds=inputs).last_hidden_state[0, len(context) - 1 : -1]
    return (model.lm_head if phase == "cot" else model.model.generation_head)(hidden)


def slow_logprobs(
    model: JanusForConditionalGeneration,
    conversation: Conversation,
    phase: str,
    context: np.ndarray,
    targets: np.ndarray,
    guidance_scale: float | None,
) -> Tensor:
    """[N]: conditional, or with a scale of the mix `u + w (c - u)`, and then at TEMPERATURE."""
    logits = slow_logits(model, phase, context, targets)
    if guidance_scale is not None:
        if phase == "image":
            unconditional = slow_logits(model, phase, conversation.unconditional_prompt(context), targets)
            logits = unconditional + guidance_scale * (logits - unconditional)
        logits = logits / TEMPERATURE
    return logits.log_softmax(-1).gather(-1, torch.from_numpy(targets).long()[:, None])[:, 0]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("phase", ["cot", "image"])
def test_logprobs_loss_and_gradients_equal_those_of_transformers_own_forward(
    folder: Path, model: JanusForConditionalGeneration, policy: JanusPolicy, phase: str, guided: bool
) -> None:
    """Of PPO's loss with a clip; each parameter's gradient within 1e-10 of the largest of its elements."""
    conversation = Conversation.from_pretrained(str(folder))
    contexts, targets = ragged(phase, conversation)
    tokens = tokens_of(phase, contexts, targets)
    options = {"temperature": TEMPERATURE} if guided else {}
    if guided and phase == "image":
        options["guidance_scales"] = torch.tensor(SCALES, dtype=torch.float64)
    logprobs, _ = policy(tokens, **options)
    behaviour = logprobs.detach() + torch.linspace(-0.3, 0.3, logprobs.numel()).view_as(logprobs)
    advantages = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    terms = bicot_grpo_terms(
        TokenTensors(logprobs, behaviour, advantages, tokens.target_mask), LossSettings(clip_low=0.2, clip_high=0.2)
    )
    terms.loss.backward()

    total = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        scale = SCALES[row] if guided else None
        expected = slow_logprobs(model, conversation, phase, contexts[row], targets[row], scale)
        length = len(targets[row])
        torch.testing.assert_close(logprobs[row, :length], expected, rtol=1e-10, atol=1e-10)
        for p, q in zip(expected, behaviour[row, :length], strict=True):
            ratio = (p - q).exp()
            total = total - torch.minimum(ratio * advantages[row], ratio.clamp(0.8, 1.2) * advantages[row])
    total.backward()
    assert float(terms.loss.detach()) == pytest.approx(float(total.detach()), rel=1e-10)
    slow_gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    num_compared = 0
    for name, parameter in policy.named_trainable_parameters():
        if parameter.grad is None:  # the other phase's head
            continue
        expected_gradient = slow_gradients[name]
        assert expected_gradient is not None, name
        largest = float(expected_gradient.abs().max())
        torch.testing.assert_close(parameter.grad, expected_gradient, rtol=1e-10, atol=1e-10 * largest)
        num_compared += 1
    assert num_compared > 10


def test_guidance_of_one_trains_the_conditional_distribution(folder: Path, policy: JanusPolicy) -> None:
    conversation = Conversation.from_pretrained(str(folder))
    tokens = tokens_of("image", *ragged("image", conversation))
    with torch.no_grad():
        plain, plain_entropy = policy(tokens)
        guided, guided_entropy = policy(tokens, guidance_scales=torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(guided, plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(guided_entropy, plain_entropy, rtol=1e-10, atol=1e-10)


def test_the_language_model_trains_unless_other_names_are_given(folder: Path, policy: JanusPolicy) -> None:
    names = [name for name, _ in policy.named_trainable_parameters()]
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in names)
    some = JanusPolicy.load(str(folder), torch.float32, logprob_chunk_tokens=7, trainable=["*.layers.0.mlp.*"])
    assert [name.rpartition(".mlp.")[2] for name, _ in some.named_trainable_parameters()] == [
        "gate_proj.weight", "up_proj.weight", "down_proj.weight",
    ]  # fmt: skip
    assert [name for name, _ in some.named_changing_parameters()] == [n for n in names if not n.startswith("lm_head.")]


def test_a_pattern_that_no_parameter_matches_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"learner\.trainable: no parameter's name matches 'model\.vqmodel\.\*'"):
        JanusPolicy.load(str(folder), torch.float32, logprob_chunk_tokens=7, trainable=["model.vqmodel.*"])
