"""The sampler's GPU kernels against PyTorch's operations, at the sizes of Janus-Pro, and its step without a wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rollout.vllm.model import noise
from rollout.vllm.model.sampler import Batch, RowSettings, TokenSampler

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

NUM_CODES, NUM_WORDS = 16_384, 102_400
SIZES = [(256, NUM_CODES), (33, NUM_WORDS), (5, 1_001), (1, 7)]
TIE = 1e-5
"""Of logits plus noise: as good as equal to kernels that round in another order."""


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(noise, "_failed", set())
    yield
    assert not noise._failed, "a kernel failed, and PyTorch took its place"


def random_logits(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(sum(shape)))


def keys_of(count: int, position: int = 40) -> torch.Tensor:
    seeds = torch.arange(count, device="cuda")
    return noise.keys(noise.streams(seeds), seeds % 600 + position)


@pytest.mark.parametrize(("num_rows", "num_columns"), SIZES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_kernel_draws_the_tokens_that_pytorch_draws(num_rows: int, num_columns: int, temperature: float) -> None:
    logits = random_logits(num_rows, num_columns)
    logits[0, : num_columns // 2] = float("-inf")  # as `top_k` leaves columns out
    temperatures = torch.full((num_rows, 1), temperature, device="cuda")
    num_other = 0
    for position in range(20):
        keys = keys_of(num_rows, position)
        drawn, expected = (draw(logits, temperatures, keys) for draw in (noise.sample, noise.sample_unfused))
        noisy = logits / temperatures + noise.gumbel(keys, num_columns)
        of_both = noisy.gather(-1, torch.stack([drawn, expected], -1))
        assert (of_both[:, 1] - of_both[:, 0]).max() < TIE
        num_other += int((drawn != expected).sum())
    assert num_other <= 0.001 * 20 * num_rows


@pytest.mark.parametrize(("num_rows", "num_columns"), SIZES)
@pytest.mark.parametrize("num_streams", [1, 2])
def test_logprobs_are_those_of_a_float64_softmax(num_rows: int, num_columns: int, num_streams: int) -> None:
    logits = random_logits(num_rows, num_streams, num_columns)
    tokens = torch.arange(num_rows, device="cuda") * 7 % num_columns
    expected = logits.double().log_softmax(-1)[torch.arange(num_rows), :, tokens].float()
    torch.testing.assert_close(noise.logprobs(logits, tokens), expected, atol=1e-5, rtol=1e-6)


def test_draws_have_the_softmaxs_frequencies() -> None:
    probabilities = torch.tensor([0.5, 0.2, 0.1, 0.08, 0.05, 0.04, 0.02, 0.01], device="cuda")
    count = 1_000_000
    logits = (0.5 * probabilities.log()).expand(count, -1)
    tokens = noise.sample(logits, torch.full((count, 1), 0.5, device="cuda"), keys_of(count))
    counts, expected = torch.bincount(tokens, minlength=8).double(), probabilities.double() * count
    # 7 degrees of freedom: above 29.9 by chance once in 10,000.
    assert float(((counts - expected) ** 2 / expected).sum()) < 29.9


def test_a_step_never_waits_for_the_gpu() -> None:
    """Also the one in which rows have changed: vLLM prepares the next step while a step is computed."""
    width, num_rows = 64, 48
    text, codes = random_logits(width, 1_000), random_logits(width, 500)
    sampler = TokenSampler(lambda hidden: hidden @ text, lambda hidden: hidden @ codes, 1_000, 2, True)
    rows = [
        RowSettings(seed, [1.0, 0.0, 0.8][seed % 3], 5.0 if seed % 2 else None, [None, 40][seed % 2])
        for seed in range(num_rows)
    ]
    hidden, positions = random_logits(num_rows, 2 * width), torch.arange(num_rows, device="cuda")
    device = torch.device("cuda")
    first = sampler(hidden, Batch(rows, device), positions)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = sampler(hidden, Batch(rows, device), positions)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert again.token_ids.equal(first.token_ids)
    torch.testing.assert_close(again.logprobs, first.logprobs, equal_nan=True)
