"""The two streams of a sequence, and their mix."""

from __future__ import annotations

import numpy as np
import torch
from transformers import JanusForConditionalGeneration

from rollout.guidance import guided_logits, unconditional_ids
from rollout.janus_checkpoint import JanusCheckpoint, SpecialIds
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
