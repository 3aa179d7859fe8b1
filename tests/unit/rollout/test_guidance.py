"""The two streams of a sequence, their mix, and the processor's record of vLLM's batch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import JanusForConditionalGeneration
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from rollout.guidance import guided_logits, unconditional_ids
from rollout.janus_checkpoint import JanusCheckpoint, SpecialIds
from rollout.vllm.guidance_processor import GuidanceProcessor, guidance_scale_of
from tests.tiny_models import tiny_janus_folder
from tests.transformers_streams import unconditional_context

TEXT_VOCAB, NUM_CODES = 10, 4
BOS, PAD, BOI = 1, 0, 7


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def unconditional(tokens: torch.Tensor) -> list[int]:
    special_ids = SpecialIds(bos=BOS, eos=2, pad=PAD, begin_of_image=BOI)
    return unconditional_ids(tokens, special_ids, TEXT_VOCAB).tolist()


def test_the_unconditional_stream_keeps_bos_begin_of_image_and_image_tokens_only() -> None:
    tokens = ids(BOS, 5, 9, 2, BOI, TEXT_VOCAB, TEXT_VOCAB + 3)
    assert unconditional(tokens) == [BOS, PAD, PAD, PAD, BOI, TEXT_VOCAB, TEXT_VOCAB + 3]


def test_the_unconditional_token_depends_on_its_own_place_alone() -> None:
    tokens = ids(BOS, 5, BOI, TEXT_VOCAB + 1, 3)
    assert unconditional(tokens) == [unconditional(token.reshape(1))[0] for token in tokens]


def test_the_unconditional_stream_is_the_one_that_transformers_draws_with() -> None:
    """The ids that its own generate embeds for the second half of its doubled batch."""
    folder = tiny_janus_folder()
    checkpoint = JanusCheckpoint(folder)
    special = checkpoint.special_ids
    prompt = ids(special.bos, 30, special.eos, 41, special.bos, special.pad, special.begin_of_image)
    expected = unconditional_context(JanusForConditionalGeneration.from_pretrained(folder), prompt)
    assert unconditional_ids(prompt, special, checkpoint.text_vocab_size).tolist() == expected.tolist()


def test_guidance_of_one_is_the_conditional_stream_and_of_zero_the_other() -> None:
    conditional, other = torch.randn(3, NUM_CODES), torch.randn(3, NUM_CODES)
    torch.testing.assert_close(guided_logits(conditional, other, 1.0), conditional)
    torch.testing.assert_close(guided_logits(conditional, other, 0.0), other)


def test_guidance_samples_from_c_to_the_w_times_u_to_the_one_minus_w() -> None:
    rng = np.random.default_rng(0)
    c, u = rng.dirichlet(np.ones(NUM_CODES)), rng.dirichlet(np.ones(NUM_CODES))
    expected = c**5.0 * u**-4.0
    mixed = guided_logits(torch.from_numpy(np.log(c)), torch.from_numpy(np.log(u)), 5.0)
    np.testing.assert_allclose(mixed.softmax(-1).numpy(), expected / expected.sum(), rtol=1e-9)


def test_guidance_of_log_probabilities_samples_as_guidance_of_logits() -> None:
    conditional, other = torch.randn(3, NUM_CODES), torch.randn(3, NUM_CODES)
    of_logits = guided_logits(conditional, other, 5.0).softmax(-1)
    of_logprobs = guided_logits(conditional.log_softmax(-1), other, 5.0).softmax(-1)
    torch.testing.assert_close(of_logprobs, of_logits)


@pytest.fixture
def processor() -> GuidanceProcessor:
    hf_config = SimpleNamespace(
        text_config=SimpleNamespace(text_vocab_size=TEXT_VOCAB), vq_config=SimpleNamespace(num_embeddings=NUM_CODES)
    )
    vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config))
    return GuidanceProcessor(vllm_config, torch.device("cpu"), is_pin_memory=False)


def picture(guidance_scale: float) -> SamplingParams:
    return SamplingParams(extra_args={"guidance_scale": guidance_scale})


def change(
    processor: GuidanceProcessor,
    batch_size: int,
    added: dict[int, SamplingParams] | None = None,
    removed: tuple[int, ...] = (),
    moved: tuple[tuple[int, int, MoveDirectionality], ...] = (),
) -> None:
    additions = [(row, params, None, []) for row, params in (added or {}).items()]
    processor.update_state(BatchUpdate(batch_size=batch_size, removed=removed, added=additions, moved=moved))


def scales(processor: GuidanceProcessor, batch_size: int) -> list[float | None]:
    """What each row is guided with, seen from outside; None for text."""
    row = torch.zeros(batch_size, TEXT_VOCAB + 2 * NUM_CODES)
    row[:, TEXT_VOCAB] = 1.0  # c - u is 1 at the first code, so u + w (c - u) is w
    out = processor.apply(row)
    return [None if torch.isneginf(out[i, TEXT_VOCAB]) else out[i, TEXT_VOCAB].item() for i in range(batch_size)]


def test_a_row_that_draws_may_sample_codes_alone_and_one_that_writes_text_alone(processor: GuidanceProcessor) -> None:
    change(processor, 2, {0: picture(5.0), 1: SamplingParams()})
    torch.manual_seed(0)
    logits = torch.randn(2, TEXT_VOCAB + 2 * NUM_CODES)
    text, conditional, other = logits.clone().split([TEXT_VOCAB, NUM_CODES, NUM_CODES], dim=-1)
    out = processor.apply(logits)
    drawn, written = out[0], out[1]
    torch.testing.assert_close(drawn[TEXT_VOCAB:-NUM_CODES], guided_logits(conditional[0], other[0], 5.0))
    torch.testing.assert_close(written[:TEXT_VOCAB], text[1])
    assert drawn.isneginf().tolist() == [True] * TEXT_VOCAB + [False] * NUM_CODES + [True] * NUM_CODES
    assert written.isneginf().tolist() == [False] * TEXT_VOCAB + [True] * 2 * NUM_CODES


def test_scales_follow_their_requests_through_the_batch(processor: GuidanceProcessor) -> None:
    change(processor, 3, {0: picture(2.0), 1: SamplingParams(), 2: picture(3.0)})
    assert scales(processor, 3) == [2.0, None, 3.0]
    change(processor, 3, moved=((0, 1, MoveDirectionality.SWAP),))
    assert scales(processor, 3) == [None, 2.0, 3.0]
    change(processor, 2, removed=(0,), moved=((2, 0, MoveDirectionality.UNIDIRECTIONAL),))
    assert scales(processor, 2) == [3.0, 2.0]
    change(processor, 2, {1: SamplingParams()})  # replaces the request that was there
    assert scales(processor, 2) == [3.0, None]
    processor.update_state(None)
    assert scales(processor, 2) == [3.0, None]


def test_a_request_without_a_scale_writes_text() -> None:
    assert guidance_scale_of(SamplingParams()) is None
    assert guidance_scale_of(SamplingParams(extra_args={"other": 1})) is None
    assert guidance_scale_of(picture(1.0)) == 1.0
