"""Temperature and guidance scale are read off tokens that were drawn with them, against the likelihood itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.objective.sampling import SETTINGS, SamplingSums, Setting, score_and_information

NUM_TOKENS = 6000
NUM_CODES = 40


def logits_of_two_streams() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    unconditional = torch.randn(NUM_TOKENS, NUM_CODES, generator=generator, dtype=torch.float64)
    return unconditional + 0.3 * torch.randn(unconditional.shape, generator=generator).double(), unconditional


def mixed(guidance_scale: float) -> Tensor:
    conditional, unconditional = logits_of_two_streams()
    return unconditional + guidance_scale * (conditional - unconditional)


def sums_of_tokens(temperature: float, guidance_scale: float) -> SamplingSums:
    """Scores under temperature 1 and scale 5 of tokens that were drawn with these."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.multinomial((mixed(guidance_scale) / temperature).softmax(-1), 1, generator=generator)
    at, above, below = (mixed(scale).log_softmax(-1).gather(1, drawn).T for scale in (5.0, 5.5, 4.5))
    colder, warmer = ((mixed(5.0) * beta).log_softmax(-1).gather(1, drawn).T for beta in (1.1, 0.9))
    mask, worker = torch.ones(1, NUM_TOKENS, dtype=torch.bool), torch.tensor([1])
    sums = SamplingSums(torch.device("cpu"), 2)
    sums.add("temperature of the image tokens", score_and_information(warmer, at, colder, 0.1), mask, worker)
    sums.add("guidance scale", score_and_information(below, at, above, 0.5), mask, worker)
    return sums


@pytest.mark.parametrize("guidance_scale", [5.0, 5.5, 4.5])
def test_a_guidance_scale_is_found_where_the_likelihood_of_the_tokens_is_largest(guidance_scale: float) -> None:
    estimate = sums_of_tokens(1.0, guidance_scale).estimates(1.0, 5.0)[1]
    assert estimate.value == pytest.approx(guidance_scale, abs=0.1)
    assert estimate.is_off(0.05) == (guidance_scale != 5.0)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.multinomial(mixed(guidance_scale).softmax(-1), 1, generator=generator)
    scales = np.arange(4.0, 6.01, 0.05)
    likelihoods = [float(mixed(scale).log_softmax(-1).gather(1, drawn).sum()) for scale in scales]
    assert estimate.value == pytest.approx(scales[int(np.argmax(likelihoods))], abs=0.1)


@pytest.mark.parametrize("temperature", [1.0, 0.9, 1.1])
def test_a_temperature_is_found_in_the_tokens(temperature: float) -> None:
    estimate = sums_of_tokens(temperature, 5.0).estimates(1.0, 5.0)[0]
    assert estimate.setting == "temperature of the image tokens"
    assert estimate.value == pytest.approx(temperature, abs=0.025)
    assert estimate.is_off(0.05) == (temperature != 1.0)
    assert estimate.num_tokens == NUM_TOKENS


def test_the_differences_are_the_derivatives_and_the_information_is_the_variance_of_the_logits() -> None:
    logits = mixed(5.0)[:20]
    drawn = torch.zeros(20, 1, dtype=torch.long)
    beta = torch.ones((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((beta * logits).log_softmax(-1).gather(1, drawn).sum(), beta)
    probabilities = logits.softmax(-1)
    variance = (probabilities * logits.square()).sum(-1) - (probabilities * logits).sum(-1).square()
    of_drawn = [(b * logits).log_softmax(-1).gather(1, drawn)[:, 0] for b in (0.999, 1.0, 1.001)]
    score, information = score_and_information(*of_drawn, 0.001)
    assert float(score.sum()) == pytest.approx(float(slope), rel=1e-5)
    torch.testing.assert_close(information, variance, rtol=1e-4, atol=1e-6)


def test_each_worker_has_estimates_of_its_own_and_settings_without_tokens_have_none() -> None:
    sums = sums_of_tokens(0.9, 5.0)
    assert sums.estimates(1.0, 5.0, worker=0) == []
    assert sums.estimates(1.0, 5.0, worker=1) == sums.estimates(1.0, 5.0)
    assert [estimate.setting for estimate in sums.estimates(1.0, 5.0)] == list(SETTINGS[1:])


def test_the_error_is_the_spread_of_the_estimates_and_few_tokens_prove_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    values = []
    for _ in range(300):
        sums = SamplingSums(torch.device("cpu"), 1)
        logits = torch.randn(1, 200, NUM_CODES, generator=generator)
        drawn = torch.multinomial(logits[0].softmax(-1), 1, generator=generator)[None]
        of_drawn = [(logits * beta).log_softmax(-1).gather(-1, drawn)[..., 0] for beta in (0.9, 1.0, 1.1)]
        scores = score_and_information(*of_drawn, 0.1)
        sums.add("temperature of the semantic CoT", scores, torch.ones(1, 200, dtype=torch.bool), torch.tensor([0]))
        (estimate,) = sums.estimates(1.0, 5.0)
        assert not estimate.is_off(0.05)
        values.append(math.copysign(estimate.num_errors, 1 - estimate.value))
    assert np.mean(values) == pytest.approx(0.0, abs=0.2)
    assert np.std(values) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("rounding", [0.1, 1.2])
def test_rounding_of_the_logits_that_an_engine_samples_from_is_not_taken_for_another_temperature(
    rounding: float,
) -> None:
    """The engine samples from logits that are off; where they are off by much, its tokens do show it."""
    generator = torch.Generator().manual_seed(4)
    name: Setting = "temperature of the semantic CoT"
    logits = 5 * torch.randn(1, 4096, 500, generator=generator)

    def sums_under(beta: float) -> SamplingSums:
        sums = SamplingSums(torch.device("cpu"), 1)
        off = rounding * torch.randn(logits.shape, generator=generator)
        drawn = torch.multinomial((beta * (logits + off))[0].softmax(-1), 1, generator=generator)[None]
        of_drawn = [(logits * b).log_softmax(-1).gather(-1, drawn)[..., 0] for b in (0.9, 1.0, 1.1)]
        mask = torch.ones(1, 4096, dtype=torch.bool)
        sums.add(name, score_and_information(*of_drawn, 0.1), mask, torch.tensor([0]))
        return sums

    sound, hot = sums_under(1.0), sums_under(0.5)
    (without,), (estimate,) = sound.estimates(1.0, 5.0), sound.estimates(1.0, 5.0, rounding={name: rounding})
    assert without.is_off(0.05) is (rounding > 0.5)
    assert not estimate.is_off(0.05)
    (found,) = hot.estimates(1.0, 5.0, rounding={name: rounding})
    assert found.is_off(0.05)


def test_what_is_not_a_number_is_off() -> None:
    sums = SamplingSums(torch.device("cpu"), 1)
    scores = torch.full((1, 3), math.nan), torch.ones(1, 3)
    sums.add("guidance scale", scores, torch.ones(1, 3, dtype=torch.bool), torch.tensor([0]))
    (estimate,) = sums.estimates(1.0, 5.0)
    assert estimate.is_off(0.05)
