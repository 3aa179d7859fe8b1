"""The policy's log-probabilities, conditional and guided, against transformers' own forward: one trajectory at a time,
without padding, all logits at once, in float64."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from configs.errors import ModelError
from configs.schema import LoraConfig, TinyJanusConfig
from learner.janus_policy import JanusPolicy
from learner.micro_batch import right_pad
from learner.objective import LossSettings, bicot_grpo_terms
from learner.objective.loss import TokenTensors
from learner.objective.phase_tokens import LogprobRequest, PhaseTokens
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.prompts import Conversation
from tests.transformers_streams import unconditional_context

SHAPE = TinyJanusConfig(
    hidden_size=64, num_layers=2, num_heads=2, num_codes=32, image_size=16, patch_size=4, max_positions=64
)
NUM_IMAGE_TOKENS = 16
SCALES = (5.0, 2.0, 1.0)
TEMPERATURE = 0.8

CHUNK_BYTES = 2**12
"""Some tens of entries of a vocabulary at once."""


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
    return JanusPolicy.load(str(folder), torch.float64, logprob_chunk_bytes=CHUNK_BYTES)


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
            unconditional = slow_logits(model, phase, unconditional_context(model, context).numpy(), targets)
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
    logprobs, _ = policy(LogprobRequest(tokens, **options))
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


def norm_in_float64(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.mark.parametrize("policy_loss", ["ppo", "cispo"])
def test_a_shared_cot_is_passed_once_and_teaches_what_it_teaches_with_each_picture(
    folder: Path, policy: JanusPolicy, monkeypatch: pytest.MonkeyPatch, policy_loss: str
) -> None:
    """Loss and gradients, with other advantages, weights and masks a picture, and ratios past the clip."""
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm_in_float64)  # transformers' own rounds to float32
    contexts, targets = ragged("cot", Conversation.from_pretrained(str(folder)))
    alone = tokens_of("cot", [one for one in contexts for _ in "ab"], [one for one in targets for _ in "ab"])
    alone.target_mask[3] = False  # a picture without a reward
    widths: list[int] = []
    whole_pass = policy._hidden
    monkeypatch.setattr(
        policy, "_hidden", lambda context, *rest: widths.append(len(context)) or whole_pass(context, *rest)
    )
    advantages = torch.tensor([1.0, -0.5, 0.3, -1.0, 0.0, 2.0], dtype=torch.float64)
    row_weights = torch.tensor([0.5, 0.25, 1.0, 0.1, 0.2, 0.7], dtype=torch.float64)
    results = []
    for tokens in (alone, replace(alone, num_sharing=2)):
        policy.zero_grad()
        logprobs, entropy = policy(LogprobRequest(tokens, entropy_gradient=True))
        with torch.no_grad():
            noise = torch.linspace(-0.4, 0.4, logprobs.shape[1]).expand_as(logprobs)
        values = TokenTensors(
            logprobs,
            logprobs.detach() + noise,
            advantages,
            tokens.target_mask,
            reference_logprobs=logprobs.detach() - noise,
            entropy=entropy,
            row_weights=row_weights,
        )
        settings = LossSettings(0.1, policy_loss, clip_low=0.2, clip_high=0.2, entropy_coef=0.01)
        loss = bicot_grpo_terms(values, settings).loss
        loss.backward()
        gradients = [p.grad.clone() for _, p in policy.named_trainable_parameters() if p.grad is not None]
        results.append((loss.detach(), logprobs.detach()[tokens.target_mask], *gradients))
    assert widths == [6, 3]
    assert len(results[0]) > 10
    for each, once in zip(*results, strict=True):
        torch.testing.assert_close(once, each, rtol=1e-9, atol=1e-10 * float(each.abs().max()))


def test_guidance_of_one_trains_the_conditional_distribution(folder: Path, policy: JanusPolicy) -> None:
    conversation = Conversation.from_pretrained(str(folder))
    tokens = tokens_of("image", *ragged("image", conversation))
    with torch.no_grad():
        plain, plain_entropy = policy(LogprobRequest(tokens))
        scales = torch.ones(3, dtype=torch.float64)
        guided, guided_entropy = policy(LogprobRequest(tokens, guidance_scales=scales))
    torch.testing.assert_close(guided, plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(guided_entropy, plain_entropy, rtol=1e-10, atol=1e-10)


def test_the_language_model_trains_unless_other_names_are_given(folder: Path, policy: JanusPolicy) -> None:
    names = [name for name, _ in policy.named_trainable_parameters()]
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in names)
    some = JanusPolicy.load(str(folder), torch.float32, logprob_chunk_bytes=CHUNK_BYTES, trainable=["*.layers.0.mlp.*"])
    assert [name.rpartition(".mlp.")[2] for name, _ in some.named_trainable_parameters()] == [
        "gate_proj.weight", "up_proj.weight", "down_proj.weight",
    ]  # fmt: skip
    assert [name for name, _ in some.named_changing_parameters()] == [n for n in names if not n.startswith("lm_head.")]


def test_a_pattern_that_no_parameter_matches_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"learner\.trainable: no parameter's name matches 'model\.vqmodel\.\*'"):
        JanusPolicy.load(str(folder), torch.float32, logprob_chunk_bytes=CHUNK_BYTES, trainable=["model.vqmodel.*"])


def test_the_model_that_a_policy_is_made_of_stays_whole_and_usable(
    folder: Path, model: JanusForConditionalGeneration
) -> None:
    """Through adapters, gradient checkpointing, and a backward pass, until its shared weights are changed."""
    conversation = Conversation.from_pretrained(str(folder))
    contexts, targets = ragged("image", conversation)
    names = [name for name, _ in model.named_modules()]
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    prompt = torch.from_numpy(contexts[0]).long()[None]
    before = model(input_ids=prompt).logits.detach(), slow_logits(model, "image", contexts[0], targets[0]).detach()
    policy = JanusPolicy(
        model,
        special_ids=JanusCheckpoint(folder).special_ids,
        logprob_chunk_bytes=CHUNK_BYTES,
        lora=LoraConfig(rank=2, targets=("q_proj",)),
    )
    policy.enable_gradient_checkpointing()
    logprobs, _ = policy(LogprobRequest(tokens_of("image", contexts, targets)))
    logprobs.sum().backward()

    assert [name for name, _ in model.named_modules()] == names
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.model.language_model.is_gradient_checkpointing
    after = model(input_ids=prompt).logits, slow_logits(model, "image", contexts[0], targets[0])
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert unconditional_context(model, contexts[0]).shape == prompt[0].shape  # its own generate runs

    name = "model.language_model.norm.weight"
    with torch.no_grad():
        policy.model.get_parameter(name).mul_(2.0)
    assert policy.model.get_parameter(name).data_ptr() == model.get_parameter(name).data_ptr()
    assert not torch.equal(model(input_ids=prompt).logits, before[0])


def test_a_reference_shares_what_the_policy_does_not_train_and_keeps_the_rest(folder: Path) -> None:
    trainable = ["model.language_model.layers.0.*"]
    policy, reference = (
        JanusPolicy.load(str(folder), torch.float32, logprob_chunk_bytes=CHUNK_BYTES, trainable=trainable)
        for _ in range(2)
    )
    reference.requires_grad_(False).share_frozen(policy)
    trained = {name for name, _ in policy.named_trainable_parameters()}
    own = dict(reference.model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        assert (own[name].data_ptr() == parameter.data_ptr()) is (name not in trained), name
        assert torch.equal(own[name], parameter)


def test_names_and_order_of_parameters_are_those_that_older_checkpoints_hold(folder: Path) -> None:
    """A rank's fragments are found by these names; see `learner.zero.optimizer_state`."""
    lora = LoraConfig(rank=2, targets=("q_proj",))
    policy = JanusPolicy.load(str(folder), torch.float32, logprob_chunk_bytes=CHUNK_BYTES, lora=lora)
    names = [name for name, _ in policy.named_parameters()]
    layer = "model.model.language_model.layers.0"
    assert names[:14] == [
        "model.model.generation_embeddings.weight",
        "model.model.generation_aligner.fc1.weight",
        "model.model.generation_aligner.fc1.bias",
        "model.model.generation_aligner.hidden_layers.0.weight",
        "model.model.generation_aligner.hidden_layers.0.bias",
        "model.model.generation_head.proj_out.weight",
        "model.model.generation_head.proj_out.bias",
        "model.model.generation_head.vision_head.weight",
        "model.model.generation_head.vision_head.bias",
        "model.model.language_model.embed_tokens.weight",
        f"{layer}.self_attn.q_proj.lora_a",
        f"{layer}.self_attn.q_proj.lora_b",
        f"{layer}.self_attn.q_proj.base.weight",
        f"{layer}.self_attn.k_proj.weight",
    ]
    assert names[-2:] == ["model.model.language_model.norm.weight", "model.lm_head.weight"]


def test_a_head_that_is_tied_to_the_embedding_stays_tied(model: JanusForConditionalGeneration, folder: Path) -> None:
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    special_ids = JanusCheckpoint(folder).special_ids
    policy = JanusPolicy(
        model, special_ids=special_ids, logprob_chunk_bytes=CHUNK_BYTES, trainable=["model.language_model.*"]
    )
    assert policy.model.lm_head.weight is policy.model.model.language_model.embed_tokens.weight
    assert "lm_head.weight" not in [name for name, _ in policy.named_trainable_parameters()]


def test_a_begin_of_image_id_where_transformers_own_conversion_writes_it_is_found(folder: Path, tmp_path: Path) -> None:
    """At the top level of generation_config.json; rollout workers read the same place."""
    other = tmp_path / "converted"
    shutil.copytree(folder, other)
    path = other / "generation_config.json"
    content = json.loads(path.read_text())
    content["boi_token_id"] = content.pop("generation_kwargs")["boi_token_id"]
    path.write_text(json.dumps(content))
    conversation = Conversation.from_pretrained(str(folder))
    tokens = tokens_of("image", *ragged("image", conversation))
    request = LogprobRequest(tokens, guidance_scales=torch.tensor(SCALES))
    policies = [JanusPolicy.load(str(path), torch.float32, logprob_chunk_bytes=CHUNK_BYTES) for path in (folder, other)]
    with torch.no_grad():
        one, two = (policy(request)[0] for policy in policies)
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("phase", "asked", "message"),
    [
        ("image", ("unconditional_rows", "guidance_scales"), "exclude each other"),
        ("cot", ("unconditional_rows",), "no unconditional stream"),
        ("cot", ("guidance_scales",), "no unconditional stream"),
    ],
)
def test_a_request_that_has_no_meaning_is_refused(
    folder: Path, phase: str, asked: tuple[str, ...], message: str
) -> None:
    tokens = tokens_of(phase, *ragged(phase, Conversation.from_pretrained(str(folder))))
    with pytest.raises(ValueError, match=message):
        LogprobRequest(tokens, **dict.fromkeys(asked, torch.ones(3)))
