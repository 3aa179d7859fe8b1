"""The BiCoT-GRPO loss against loops over tokens, values and gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.loss import LossTerms, bicot_grpo_terms, k3_kl, masked_sum, policy_objective

Floats = NDArray[np.float64]


@dataclass
class Tokens:
    """One phase, float64."""

    current: Floats
    behaviour: Floats
    reference: Floats
    advantages: Floats
    mask: NDArray[np.bool_]

    @classmethod
    def random(cls, seed: int, num_rows: int = 5, num_tokens: int = 7) -> Tokens:
        rng = np.random.default_rng(seed)
        current = -rng.gamma(2.0, 1.0, (num_rows, num_tokens))
        lengths = rng.integers(0, num_tokens + 1, num_rows)
        return cls(
            current,
            current + rng.normal(0, 0.3, current.shape),
            current + rng.normal(0, 0.3, current.shape),
            rng.normal(0, 1, num_rows),
            np.arange(num_tokens) < lengths[:, None],
        )


def slow_terms(
    tokens: Tokens, kl_coef: float, low: float | None, high: float | None
) -> tuple[dict[str, float], Floats]:
    """Sums by a loop over tokens, and the loss's gradient by hand."""
    sums = {"loss": 0.0, "kl": 0.0, "behaviour_kl": 0.0, "num_clipped": 0.0, "ratio": 0.0}
    gradient = np.zeros_like(tokens.current)
    for row in range(tokens.current.shape[0]):
        for column in range(tokens.current.shape[1]):
            if not tokens.mask[row, column]:
                continue
            p, q, r = (float(x[row, column]) for x in (tokens.current, tokens.behaviour, tokens.reference))
            advantage = float(tokens.advantages[row])
            ratio = math.exp(p - q)
            lower = -math.inf if low is None else 1 - low
            upper = math.inf if high is None else 1 + high
            clipped = min(max(ratio, lower), upper) * advantage
            is_clipped = clipped < ratio * advantage
            kl = math.exp(r - p) - (r - p) - 1
            sums["loss"] -= min(ratio * advantage, clipped) - kl_coef * kl
            sums["kl"] += kl
            sums["behaviour_kl"] += math.exp(p - q) - (p - q) - 1
            sums["num_clipped"] += is_clipped
            sums["ratio"] += ratio
            gradient[row, column] = -(0.0 if is_clipped else ratio * advantage) + kl_coef * (1 - math.exp(r - p))
    return sums, gradient


def fast_terms(
    tokens: Tokens, kl_coef: float, low: float | None = None, high: float | None = None
) -> tuple[LossTerms, Tensor]:
    current = torch.from_numpy(tokens.current.copy()).requires_grad_()
    terms = bicot_grpo_terms(
        current,
        torch.from_numpy(tokens.behaviour),
        torch.from_numpy(tokens.reference),
        torch.from_numpy(tokens.advantages),
        torch.from_numpy(tokens.mask),
        kl_coef=kl_coef,
        clip_low=low,
        clip_high=high,
    )
    terms.loss.backward()
    assert current.grad is not None
    return terms, current.grad


@pytest.mark.parametrize(("low", "high"), [(None, None), (0.2, 0.28), (0.1, None), (None, 0.1)])
@pytest.mark.parametrize("kl_coef", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_sums_and_gradient_equal_the_loops(
    seed: int, kl_coef: float, low: float | None, high: float | None
) -> None:
    tokens = Tokens.random(seed)
    terms, gradient = fast_terms(tokens, kl_coef, low, high)
    expected, expected_gradient = slow_terms(tokens, kl_coef, low, high)
    for name, value in expected.items():
        assert float(getattr(terms, name).detach()) == pytest.approx(value, rel=1e-10), name
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=1e-10, atol=1e-14)


def test_on_policy_the_ratio_is_one_and_the_gradient_is_the_policy_gradient() -> None:
    tokens = Tokens.random(2)
    tokens.behaviour = tokens.current.copy()
    terms, gradient = fast_terms(tokens, kl_coef=0.0)
    assert float(terms.ratio_min) == float(terms.ratio_max) == 1.0
    np.testing.assert_array_equal(gradient.numpy(), np.where(tokens.mask, -tokens.advantages[:, None], 0.0))


def test_the_sums_of_parts_make_the_sum_of_the_whole() -> None:
    tokens = Tokens.random(3)
    whole, whole_gradient = fast_terms(tokens, 0.01, 0.2, 0.2)
    parts = [
        Tokens(*(getattr(tokens, name)[rows] for name in ("current", "behaviour", "reference", "advantages", "mask")))
        for rows in (slice(0, 2), slice(2, 5))
    ]
    results = [fast_terms(part, 0.01, 0.2, 0.2) for part in parts]
    assert float(sum(terms.loss.detach() for terms, _ in results)) == pytest.approx(
        float(whole.loss.detach()), rel=1e-12
    )
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]), whole_gradient)


def test_what_stands_in_the_padding_never_counts() -> None:
    tokens = Tokens.random(4)
    clean, clean_gradient = fast_terms(tokens, 0.01, 0.2, 0.2)
    for values, rubbish in ((tokens.current, math.nan), (tokens.behaviour, -math.inf), (tokens.reference, math.inf)):
        values[~tokens.mask] = rubbish
    dirty, dirty_gradient = fast_terms(tokens, 0.01, 0.2, 0.2)
    assert float(dirty.loss.detach()) == float(clean.loss.detach())
    assert torch.equal(dirty_gradient, clean_gradient)


def test_without_any_token_all_sums_are_zero_and_backward_still_works() -> None:
    tokens = Tokens.random(5)
    tokens.mask[:] = False
    terms, gradient = fast_terms(tokens, 0.01)
    assert [float(value) for value in (terms.loss.detach(), terms.kl, terms.ratio, terms.num_clipped)] == [0.0] * 4
    assert (float(terms.ratio_min), float(terms.ratio_max)) == (math.inf, -math.inf)
    assert not gradient.any()


def test_advantages_of_zero_leave_only_the_kl() -> None:
    tokens = Tokens.random(6)
    tokens.advantages[:] = 0.0
    terms, _ = fast_terms(tokens, 0.5)
    assert float(terms.loss.detach()) == pytest.approx(0.5 * float(terms.kl), rel=1e-12)


@pytest.mark.parametrize("which", ["current", "behaviour", "reference"])
def test_an_infinite_logprob_of_a_token_that_counts_shows_in_loss_or_gradient(which: str) -> None:
    tokens = Tokens.random(7)
    tokens.mask[:] = True
    getattr(tokens, which)[1, 2] = -math.inf
    terms, gradient = fast_terms(tokens, 0.01)
    assert not (math.isfinite(float(terms.loss.detach())) and bool(gradient.isfinite().all()))


def test_without_a_reference_there_is_no_kl() -> None:
    values = torch.zeros(2, 3, dtype=torch.float64)
    mask = torch.ones(2, 3, dtype=torch.bool)
    terms = bicot_grpo_terms(values, values, None, torch.ones(2, dtype=torch.float64), mask, kl_coef=0.0)
    assert (float(terms.kl), float(terms.loss.detach())) == (0.0, -6.0)
    with pytest.raises(ValueError, match="no reference_logprobs"):
        bicot_grpo_terms(values, values, None, torch.ones(2, dtype=torch.float64), mask, kl_coef=0.1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("behaviour", (2, 4)), ("reference", (3,)), ("mask", (1, 3)), ("advantages", (3,)), ("advantages", (2, 3))],
)
def test_a_wrong_shape_is_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    tensors = {key: torch.zeros(2, 3) for key in ("current", "behaviour", "reference")}
    tensors |= {"advantages": torch.zeros(2), "mask": torch.ones(2, 3, dtype=torch.bool)}
    tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
    with pytest.raises(ValueError, match=name):
        bicot_grpo_terms(*tensors.values(), kl_coef=0.1)


def test_a_mask_that_is_not_bool_is_refused() -> None:
    values = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="mask must be bool"):
        bicot_grpo_terms(values, values, values, torch.zeros(2), torch.ones(2, 3), kl_coef=0.1)


def test_k3_estimates_the_kl_without_bias() -> None:
    """Its expectation under the policy is the exact KL between two categorical distributions."""
    rng = np.random.default_rng(0)
    policy, reference = (torch.from_numpy(rng.dirichlet(np.ones(6))) for _ in range(2))
    exact = float((policy * (policy / reference).log()).sum())
    expectation = float((policy * k3_kl(policy.log(), reference.log())).sum())
    assert expectation == pytest.approx(exact, rel=1e-12)
    assert bool((k3_kl(policy.log(), reference.log()) >= 0).all())


def test_the_clip_only_ever_lowers_the_objective() -> None:
    ratio = torch.linspace(0.1, 3.0, 50, dtype=torch.float64)
    for advantage in (-1.0, 1.0):
        advantages = torch.full_like(ratio, advantage)
        objective, _ = policy_objective(ratio, advantages, 0.2, 0.3)
        assert bool((objective <= ratio * advantages).all())


def test_a_masked_sum_ignores_nan_where_the_mask_is_false() -> None:
    values, mask = torch.tensor([[1.0, math.nan], [2.0, 3.0]]), torch.tensor([[True, False], [True, False]])
    assert float(masked_sum(values, mask)) == 3.0
