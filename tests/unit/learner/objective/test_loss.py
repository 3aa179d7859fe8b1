"""The BiCoT-GRPO loss and its variants against loops over tokens: values and gradients, in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.schema import AlgorithmConfig
from learner.objective import LossSettings, bicot_grpo_terms
from learner.objective.loss import LossTerms, TokenTensors, k3_kl, masked_sum, normalization
from learner.objective.mismatch import MismatchSettings
from learner.objective.policy_losses import clipped_objective
from tests.slow_loss import SlowTokens, slow_gradient, slow_terms

PAPER = LossSettings(kl_coef=0.01)
SUMS = ("loss", "kl", "behaviour_kl", "num_clipped", "num_mismatched", "ratio")


def paper_tokens(seed: int) -> SlowTokens:
    """What the paper's loss reads: nothing recomputed, no weights."""
    return replace(SlowTokens.random(seed), old=None, entropy=None, row_weights=None)


def fast_terms(tokens: SlowTokens, settings: LossSettings) -> tuple[LossTerms, Tensor]:
    """The terms, and the loss's gradient by the policy's log-probabilities."""

    def tensor(values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values.copy())

    current = torch.from_numpy(tokens.current.copy()).requires_grad_()
    terms = bicot_grpo_terms(
        TokenTensors(
            current,
            torch.from_numpy(tokens.behaviour),
            torch.from_numpy(tokens.advantages),
            torch.from_numpy(tokens.mask),
            reference_logprobs=tensor(tokens.reference),
            old_logprobs=tensor(tokens.old),
            entropy=tensor(tokens.entropy),
            row_weights=tensor(tokens.row_weights),
        ),
        settings,
    )
    terms.loss.backward()
    assert current.grad is not None
    return terms, current.grad


def assert_equals_the_loops(tokens: SlowTokens, settings: LossSettings) -> None:
    terms, gradient = fast_terms(tokens, settings)
    expected = slow_terms(tokens, settings)
    for name in SUMS:
        value = complex(getattr(expected, name)).real
        assert float(getattr(terms, name).detach()) == pytest.approx(value, rel=1e-10), name
    assert float(terms.ratio_min) == pytest.approx(min(expected.ratios), rel=1e-12)
    assert float(terms.ratio_max) == pytest.approx(max(expected.ratios), rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), slow_gradient(tokens, settings), rtol=1e-10, atol=1e-14)


CLIPS = [(None, None), (0.2, 0.28), (0.1, None), (None, 0.1)]


@pytest.mark.parametrize(("low", "high"), CLIPS)
@pytest.mark.parametrize("kl_coef", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_papers_loss_equals_the_loops(seed: int, kl_coef: float, low: float | None, high: float | None) -> None:
    assert_equals_the_loops(paper_tokens(seed), LossSettings(kl_coef=kl_coef, clip_low=low, clip_high=high))


@pytest.mark.parametrize(("low", "high"), CLIPS)
@pytest.mark.parametrize("policy_loss", ["ppo", "gspo", "cispo"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_policy_loss_equals_the_loops(seed: int, policy_loss: str, low: float | None, high: float | None) -> None:
    assert_equals_the_loops(
        SlowTokens.random(seed), replace(PAPER, policy_loss=policy_loss, clip_low=low, clip_high=high)
    )


def test_a_tokens_kl_is_cut_where_it_is_too_large_and_pulls_no_more() -> None:
    tokens, settings = SlowTokens.random(3), LossSettings(kl_coef=0.3, kl_clip=0.01)
    uncut = replace(settings, kl_clip=None)
    assert 0 < slow_terms(tokens, settings).kl.real < 0.9 * slow_terms(tokens, uncut).kl.real
    assert_equals_the_loops(tokens, settings)
    tokens.reference = tokens.current.copy()
    tokens.reference[1, 2] += 9.6  # exp(9.6) = 14,765
    tokens.mask[1, 2] = True
    tokens.advantages[:] = 0
    terms, gradient = fast_terms(tokens, replace(settings, kl_clip=10.0))
    assert float(terms.kl) == 10.0
    assert not gradient.any()


@pytest.mark.parametrize("correction", ["none", "tis", "icepop", "sequence_mask"])
@pytest.mark.parametrize("policy_loss", ["ppo", "gspo", "cispo"])
def test_every_mismatch_correction_equals_the_loops(correction: str, policy_loss: str) -> None:
    tokens, settings = SlowTokens.random(3), replace(PAPER, policy_loss=policy_loss, clip_low=0.2, clip_high=0.28)
    settings = replace(settings, mismatch=MismatchSettings(correction, low=0.95, high=1.05))
    assert_equals_the_loops(tokens, settings)
    assert (slow_terms(tokens, settings).num_mismatched > 0) == (correction != "none")


def test_all_parts_together_equal_the_loops() -> None:
    settings = LossSettings(
        kl_coef=0.3,
        policy_loss="gspo",
        clip_low=0.05,
        clip_high=0.1,
        weight=2.5,
        entropy_coef=0.7,
        mismatch=MismatchSettings("icepop", 0.7, 1.4),
    )
    for seed in range(4):
        assert_equals_the_loops(SlowTokens.random(seed), settings)


def test_the_entropy_bonus_pulls_at_the_entropy_of_each_token_that_counts() -> None:
    tokens = SlowTokens.random(4)
    entropy = torch.from_numpy(tokens.entropy).requires_grad_()
    mask = torch.from_numpy(tokens.mask)
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    given = TokenTensors(zeros, zeros, torch.zeros(5, dtype=torch.float64), mask, entropy=entropy)
    bicot_grpo_terms(given, LossSettings(entropy_coef=0.25)).loss.backward()
    assert entropy.grad is not None
    np.testing.assert_array_equal(entropy.grad.numpy(), np.where(tokens.mask, -0.25, 0.0))


def test_on_policy_the_ratio_is_one_and_the_gradient_is_the_policy_gradient() -> None:
    tokens = paper_tokens(2)
    tokens.behaviour = tokens.current.copy()
    terms, gradient = fast_terms(tokens, LossSettings())
    assert float(terms.ratio_min) == float(terms.ratio_max) == 1.0
    np.testing.assert_array_equal(gradient.numpy(), np.where(tokens.mask, -tokens.advantages[:, None], 0.0))


@pytest.mark.parametrize("policy_loss", ["gspo", "cispo"])
def test_on_policy_all_policy_losses_have_one_gradient(policy_loss: str) -> None:
    tokens = paper_tokens(2)
    tokens.behaviour = tokens.current.copy()
    _, expected = fast_terms(tokens, LossSettings(clip_low=0.2, clip_high=0.2))
    _, gradient = fast_terms(tokens, LossSettings(policy_loss=policy_loss, clip_low=0.2, clip_high=0.2))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_cispo_keeps_the_gradient_of_tokens_that_the_clip_of_ppo_removes() -> None:
    tokens = paper_tokens(1)
    tokens.behaviour, tokens.advantages = tokens.current - 1.0, np.ones(5)
    _, ppo = fast_terms(tokens, LossSettings(clip_low=0.2, clip_high=0.2))
    _, cispo = fast_terms(tokens, LossSettings(policy_loss="cispo", clip_low=0.2, clip_high=0.2))
    assert not ppo.any()
    np.testing.assert_allclose(cispo.numpy(), np.where(tokens.mask, -1.2, 0.0))


def test_a_token_left_out_for_an_impossible_record_leaves_the_rest_finite() -> None:
    """An engine that gives a token no probability at all: icepop and tis bound its weight."""
    tokens = SlowTokens.random(7)
    tokens.mask[:] = True
    tokens.behaviour[1, 2] = -math.inf
    for correction in ("tis", "icepop"):
        terms, gradient = fast_terms(tokens, replace(PAPER, mismatch=MismatchSettings(correction)))
        assert math.isfinite(float(terms.loss.detach()))
        assert bool(gradient.isfinite().all())


def test_the_sums_of_parts_make_the_sum_of_the_whole() -> None:
    tokens, settings = SlowTokens.random(3), LossSettings(kl_coef=0.01, clip_low=0.2, clip_high=0.2)
    whole, whole_gradient = fast_terms(tokens, settings)
    results = [fast_terms(tokens.rows(rows), settings) for rows in (slice(0, 2), slice(2, 5))]
    assert float(sum(terms.loss.detach() for terms, _ in results)) == pytest.approx(
        float(whole.loss.detach()), rel=1e-12
    )
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]), whole_gradient)


@pytest.mark.parametrize("policy_loss", ["ppo", "gspo", "cispo"])
def test_what_stands_in_the_padding_never_counts(policy_loss: str) -> None:
    tokens = SlowTokens.random(4)
    settings = LossSettings(0.01, policy_loss, 0.2, 0.2, entropy_coef=0.1, mismatch=MismatchSettings("sequence_mask"))
    clean, clean_gradient = fast_terms(tokens, settings)
    rubbish = {"current": math.nan, "behaviour": -math.inf, "reference": math.inf, "old": math.nan, "entropy": math.nan}
    for name, value in rubbish.items():
        getattr(tokens, name)[~tokens.mask] = value
    dirty, dirty_gradient = fast_terms(tokens, settings)
    assert float(dirty.loss.detach()) == float(clean.loss.detach())
    assert torch.equal(dirty_gradient, clean_gradient)


@pytest.mark.parametrize("policy_loss", ["ppo", "gspo", "cispo"])
@pytest.mark.parametrize("correction", ["none", "tis", "icepop", "sequence_mask"])
def test_without_any_token_all_sums_are_zero_and_backward_still_works(policy_loss: str, correction: str) -> None:
    tokens = SlowTokens.random(5)
    tokens.mask[:] = False
    settings = replace(PAPER, policy_loss=policy_loss, entropy_coef=1.0, mismatch=MismatchSettings(correction))
    terms, gradient = fast_terms(tokens, settings)
    assert [float(getattr(terms, name).detach()) for name in SUMS] == [0.0] * len(SUMS)
    assert (float(terms.ratio_min), float(terms.ratio_max)) == (math.inf, -math.inf)
    assert not gradient.any()


def test_advantages_of_zero_leave_only_the_kl() -> None:
    tokens = paper_tokens(6)
    tokens.advantages[:] = 0.0
    terms, _ = fast_terms(tokens, LossSettings(kl_coef=0.5))
    assert float(terms.loss.detach()) == pytest.approx(0.5 * float(terms.kl), rel=1e-12)


def test_a_phase_weight_scales_the_policy_term_and_leaves_the_kl() -> None:
    tokens = paper_tokens(6)
    zero, one, three = (
        float(fast_terms(tokens, replace(PAPER, weight=weight))[0].loss.detach()) for weight in (0.0, 1.0, 3.0)
    )
    assert zero == pytest.approx(0.01 * float(fast_terms(tokens, PAPER)[0].kl), rel=1e-12)
    assert three - zero == pytest.approx(3 * (one - zero), rel=1e-12)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("which", ["current", "behaviour", "reference"])
@pytest.mark.parametrize("kl_clip", [None, 10.0])
def test_an_infinite_logprob_of_a_token_that_counts_shows_in_loss_or_gradient(
    kl_clip: float | None, which: str, sign: int
) -> None:
    """The engine skips such a step; the one case that is harmless is a policy far above the behaviour's infinity."""
    tokens = paper_tokens(7)
    tokens.mask[:] = True
    getattr(tokens, which)[1, 2] = sign * math.inf
    terms, gradient = fast_terms(tokens, replace(PAPER, kl_clip=kl_clip))
    is_finite = math.isfinite(float(terms.loss.detach())) and bool(gradient.isfinite().all())
    assert is_finite == (which == "behaviour" and sign == 1)
    if is_finite:  # the ratio is 0: the token is as if it were not there, but for its KL
        assert float(terms.ratio_min) == 0.0
        assert math.isinf(float(terms.behaviour_kl))


def test_without_a_reference_there_is_no_kl() -> None:
    values = torch.zeros(2, 3, dtype=torch.float64)
    given = TokenTensors(values, values, torch.ones(2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bool))
    terms = bicot_grpo_terms(given, LossSettings())
    assert (float(terms.kl), float(terms.loss.detach())) == (0.0, -6.0)
    with pytest.raises(ValueError, match="no reference_logprobs"):
        bicot_grpo_terms(given, PAPER)
    with pytest.raises(ValueError, match="no entropy"):
        bicot_grpo_terms(given, LossSettings(entropy_coef=0.1))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("logprobs", (2,)),
        ("behaviour_logprobs", (2, 4)),
        ("reference_logprobs", (3,)),
        ("old_logprobs", (2, 3, 1)),
        ("entropy", (3, 2)),
        ("mask", (1, 3)),
        ("advantages", (3,)),
        ("advantages", (2, 3)),
        ("row_weights", (3,)),
    ],
)
def test_a_wrong_shape_is_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    values = torch.zeros(2, 3)
    given = TokenTensors(values, values, torch.zeros(2), torch.ones(2, 3, dtype=torch.bool), reference_logprobs=values)
    given = replace(given, **{name: torch.zeros(shape, dtype=torch.bool if name == "mask" else torch.float32)})
    with pytest.raises(ValueError, match=name):
        bicot_grpo_terms(given, PAPER)


def test_a_mask_that_is_not_bool_is_refused() -> None:
    values = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="mask must be bool"):
        bicot_grpo_terms(TokenTensors(values, values, torch.zeros(2), torch.ones(2, 3)), LossSettings())


@pytest.mark.parametrize("kind", ["token", "sequence", "dr_grpo"])
def test_every_normalization_is_the_mean_that_it_says(kind: str) -> None:
    """Of some number x at each token of ragged trajectories, by loops."""
    rng = np.random.default_rng(0)
    lengths, most = [3, 1, 5, 2], 6
    values = [rng.random(length) for length in lengths]
    row_weights, divisor = normalization(kind, torch.tensor(lengths), torch.tensor([0, 0, 1, 1]), most)
    weights = [1.0] * 4 if row_weights is None else row_weights.tolist()
    total = sum(weight * float(x) for weight, row in zip(weights, values, strict=True) for x in row) / divisor
    expected = {
        "token": sum(float(x) for row in values for x in row) / sum(lengths),
        "group": (sum(map(float, [*values[0], *values[1]])) / 4 + sum(map(float, [*values[2], *values[3]])) / 7) / 2,
        "sequence": sum(sum(map(float, row)) / len(row) for row in values) / len(values),
        "dr_grpo": sum(sum(map(float, row)) / most for row in values) / len(values),
    }
    assert total == pytest.approx(expected[kind], rel=1e-12)


def test_a_trajectory_without_tokens_weighs_a_finite_amount() -> None:
    row_weights, divisor = normalization("sequence", torch.tensor([0, 4]), torch.tensor([0, 0]), 6)
    assert row_weights is not None
    assert (row_weights.tolist(), divisor) == ([1.0, 0.25], 2.0)


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
    for advantage, (low, high) in itertools.product((-1.0, 1.0), CLIPS):
        advantages = torch.full_like(ratio, advantage)
        objective, _ = clipped_objective(ratio, advantages, low, high)
        assert bool((objective <= ratio * advantages).all())


def test_a_masked_sum_ignores_nan_where_the_mask_is_false() -> None:
    values, mask = torch.tensor([[1.0, math.nan], [2.0, 3.0]]), torch.tensor([[True, False], [True, False]])
    assert float(masked_sum(values, mask)) == 3.0


def test_the_settings_of_a_phase_are_those_that_the_config_gives_it() -> None:
    algorithm = AlgorithmConfig(kl_coef=0.1, kl_coef_image=0.0, cot_weight=2.0, image_weight=3.0, clip_ratio_high=0.3)
    cot, image = (LossSettings.of(algorithm, phase) for phase in ("cot", "image"))
    assert (cot.kl_coef, cot.weight, cot.clip_low, cot.clip_high) == (0.1, 2.0, None, 0.3)
    assert (image.kl_coef, image.kl_clip, image.weight) == (0.0, 10.0, 3.0)
