"""Rows of both phases in one batch: each is sampled by its own settings, from its own head, whatever lies beside it."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import vllm._C  # noqa: F401  (the kernel that samples on CPUs)

from rollout.vllm.model import noise
from rollout.vllm.model.sampler import Batch, RowSettings, TokenSampler

TEXT_VOCAB, NUM_CODES, WIDTH = 11, 5, 8
CPU = torch.device("cpu")


def weights(num_columns: int) -> torch.Tensor:
    return torch.randn(num_columns, WIDTH, generator=torch.Generator().manual_seed(num_columns))


def make_sampler(num_streams: int = 2, sampled_logprobs: bool = False) -> TokenSampler:
    text, codes = weights(TEXT_VOCAB), weights(NUM_CODES)
    return TokenSampler(lambda h: h @ text.T, lambda h: h @ codes.T, TEXT_VOCAB, num_streams, sampled_logprobs)


def hidden_states(num_rows: int, num_streams: int = 2) -> torch.Tensor:
    return torch.randn(num_rows, num_streams * WIDTH, generator=torch.Generator().manual_seed(0))


MIXED = [
    RowSettings(1, 0.7, None),
    RowSettings(2, 1.0, 5.0),
    RowSettings(3, 0.0, 3.0),
    RowSettings(4, 0.0, None),
    RowSettings(5, 1.3, 2.0),
]


def test_a_row_is_sampled_in_company_as_alone() -> None:
    sampler, hidden, positions = make_sampler(), hidden_states(len(MIXED)), torch.arange(7, 12)
    together = sampler(hidden, Batch(MIXED, CPU), positions)
    for row, settings in enumerate(MIXED):
        alone = sampler(hidden[row : row + 1], Batch([settings], CPU), positions[row : row + 1])
        assert together.token_ids[row] == alone.token_ids[0]
        torch.testing.assert_close(together.logprobs[row], alone.logprobs[0], equal_nan=True)
    draws = (together.token_ids >= TEXT_VOCAB).tolist()
    assert draws == [False, True, True, False, True]


def test_greedy_rows_take_the_best_guided_code_and_the_best_word() -> None:
    hidden = hidden_states(2)
    sampled = make_sampler()(hidden, Batch(MIXED[2:4], CPU), torch.tensor([3, 4]))
    conditional, unconditional = hidden[0].view(2, WIDTH) @ weights(NUM_CODES).T
    guided = unconditional + 3.0 * (conditional - unconditional)
    words = hidden[1, :WIDTH] @ weights(TEXT_VOCAB).T
    assert sampled.token_ids.tolist() == [TEXT_VOCAB + int(guided.argmax()), int(words.argmax())]
    code = guided.argmax()
    expected = torch.stack([conditional.log_softmax(-1)[code], unconditional.log_softmax(-1)[code]])
    torch.testing.assert_close(sampled.logprobs[0], expected)
    assert sampled.logprobs[1].isnan().tolist() == [False, True]


def test_the_logprob_of_what_is_sampled_from_is_guided_and_at_its_temperature() -> None:
    hidden, positions = hidden_states(1), torch.tensor([3])
    sampled = make_sampler(sampled_logprobs=True)(hidden, Batch([RowSettings(5, 0.5, 2.0)], CPU), positions)
    conditional, unconditional = hidden[0].view(2, WIDTH) @ weights(NUM_CODES).T
    guided = (unconditional + 2.0 * (conditional - unconditional)) / 0.5
    code = int(sampled.token_ids[0]) - TEXT_VOCAB
    assert sampled.logprobs[0, 0].item() == pytest.approx(guided.log_softmax(-1)[code].item(), abs=1e-5)


def test_top_k_leaves_only_the_likeliest_words() -> None:
    hidden = hidden_states(1).expand(400, -1)
    rows = [RowSettings(seed, 5.0, None, top_k=[3, None][seed % 2]) for seed in range(400)]
    words = make_sampler()(hidden, Batch(rows, CPU), torch.zeros(400, dtype=torch.int64)).token_ids
    likeliest = (hidden[0, :WIDTH] @ weights(TEXT_VOCAB).T).topk(3).indices.tolist()
    assert set(words[::2].tolist()) == set(likeliest)
    assert len(set(words[1::2].tolist())) > 8


def test_an_engine_of_one_stream_samples_as_guidance_of_one_does() -> None:
    rows, positions = [RowSettings(seed, 1.0, 1.0) for seed in range(20)], torch.arange(20)
    hidden = hidden_states(20)
    two = make_sampler()(hidden, Batch(rows, CPU), positions)
    one = make_sampler(num_streams=1)(hidden[:, :WIDTH], Batch(rows, CPU), positions)
    assert one.token_ids.tolist() == two.token_ids.tolist()
    torch.testing.assert_close(one.logprobs[:, 0], two.logprobs[:, 0])
    assert one.logprobs[:, 1].isnan().all()


NUM_DRAWS = 1_000_000
PROBABILITIES = torch.tensor([0.5, 0.2, 0.1, 0.08, 0.05, 0.04, 0.02, 0.01])


def by_kernel(keys: torch.Tensor) -> torch.Tensor:
    logits = PROBABILITIES.log().expand(len(keys), -1).contiguous()
    return noise.sample(logits, torch.ones(len(keys), 1), keys)


def by_torch(keys: torch.Tensor) -> torch.Tensor:
    """What GPUs run, unfused."""
    return noise.sample_unfused(PROBABILITIES.log(), torch.ones(len(keys), 1), keys)


def keys_of(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return noise.keys(noise.streams(seeds), positions)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("draw", [by_kernel, by_torch])
@pytest.mark.parametrize("over", ["seeds", "positions", "both"])
def test_draws_have_the_softmaxs_frequencies(draw, over: str) -> None:
    count = torch.arange(NUM_DRAWS)
    seeds = {"seeds": count, "positions": torch.zeros_like(count), "both": count // 1000}[over]
    positions = {"seeds": torch.full_like(count, 100), "positions": count, "both": count % 1000}[over]
    tokens = draw(keys_of(seeds, positions))
    counts = torch.bincount(tokens, minlength=len(PROBABILITIES)).numpy()
    # 7 degrees of freedom: above 29.9 by chance once in 10,000.
    assert chi_square(counts, PROBABILITIES.double().numpy() * NUM_DRAWS) < 29.9


@pytest.mark.parametrize("draw", [by_kernel, by_torch])
@pytest.mark.parametrize("other", ["next position", "next seed", "seed and position swapped", "seed up, position down"])
def test_draws_of_neighbours_are_independent(draw, other: str) -> None:
    """Pairs fill the table of joint frequencies as products do."""
    rng = np.random.default_rng(0)
    seeds, positions = (torch.from_numpy(rng.integers(1, 2**16, NUM_DRAWS // 2)) for _ in range(2))
    neighbours = {
        "next position": (seeds, positions + 1),
        "next seed": (seeds + 1, positions),
        "seed and position swapped": (positions, seeds),
        "seed up, position down": (seeds + 1, positions - 1),
    }[other]
    differ = ((seeds != neighbours[0]) | (positions != neighbours[1])).numpy()
    first, second = (draw(keys_of(*one)).numpy()[differ] for one in ((seeds, positions), neighbours))
    size = len(PROBABILITIES)
    counts = np.bincount(first * size + second, minlength=size**2)
    p = PROBABILITIES.double().numpy()
    # 63 degrees of freedom: above 117 by chance once in 20,000.
    assert chi_square(counts, np.outer(p, p).ravel() * len(first)) < 117


def test_the_noise_of_columns_is_gumbel_and_uncorrelated() -> None:
    numbers = noise.gumbel(keys_of(torch.arange(20_000), torch.full((20_000,), 9)), 12).double()
    assert numbers.isfinite().all()
    assert numbers.mean() == pytest.approx(0.57722, abs=0.01)
    assert numbers.var() == pytest.approx(np.pi**2 / 6, abs=0.03)
    correlations = torch.corrcoef(numbers.T) - torch.eye(12)
    assert correlations.abs().max() < 0.035  # about 5 standard deviations


def test_keys_are_those_of_splitmix64() -> None:
    """Against the published algorithm in Python's integers."""

    def mix(bits: int) -> int:
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % 2**64
        return bits ^ (bits >> 31)

    seeds, positions = [0, 7, 2**62 - 3], [0, 600, 5]
    expected = [
        mix((mix(seed * 0x9E3779B97F4A7C15 % 2**64) + position * 0xD1342543DE82EF95) % 2**64)
        for seed, position in zip(seeds, positions, strict=True)
    ]
    keys = keys_of(torch.tensor(seeds), torch.tensor(positions))
    assert [key % 2**64 for key in keys.tolist()] == expected


def test_a_gpu_without_the_fused_kernels_samples_by_pytorch_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = ModuleType("fused")
    kernels.draw = kernels.logprobs = lambda *_: (_ for _ in ()).throw(RuntimeError("no ptxas"))
    monkeypatch.setitem(sys.modules, "rollout.vllm.model.fused", kernels)
    monkeypatch.setattr("rollout.vllm.model.fused", kernels, raising=False)
    monkeypatch.setattr(noise, "_failed", set())
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    logits, keys = torch.randn(6, 2, 9), keys_of(torch.arange(6), torch.arange(6))
    temperatures = torch.full((6, 1), 0.7)
    for _ in range(3):
        tokens = noise.sample(logits[:, 0], temperatures, keys)
        logprobs = noise.logprobs(logits, tokens)
    assert tokens.equal(noise.sample_unfused(logits[:, 0], temperatures, keys))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[torch.arange(6), :, tokens])
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2, "one a kernel"
    assert all("no ptxas" in warning for warning in warnings)
