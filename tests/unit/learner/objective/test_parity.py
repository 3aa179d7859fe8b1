"""The parity gate: sums against loops, and when it stops, notes or stays quiet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from configs.errors import LearnerError
from configs.schema import ParityConfig
from learner.objective import ParityGate
from learner.objective.parity import ParitySums

MASK = torch.tensor([[True, True, False], [True, False, False]])


def sums_of(difference: float, phase: str = "cot") -> ParitySums:
    """Of three tokens that all differ by so much; in the padding is rubbish."""
    sums = ParitySums(torch.device("cpu"))
    ours = torch.full((2, 3), -1.0).masked_fill(~MASK, math.nan)
    sums.add(phase, ours, torch.full((2, 3), -1.0 - difference), MASK)
    return sums


def test_the_figures_equal_the_loops() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = -rng.random((2, 3)), -rng.random((2, 3))
    sums = ParitySums(torch.device("cpu"))
    for _ in range(2):
        sums.add("image", torch.from_numpy(ours), torch.from_numpy(theirs), MASK)
    pairs = [(ours[i, j], theirs[i, j]) for i in range(2) for j in range(3) if MASK[i, j]]
    differences = [abs(p - q) for p, q in pairs]
    kl = [math.exp(p - q) - (p - q) - 1 for p, q in pairs]
    assert sums.metrics() == pytest.approx(
        {
            "parity/mean_abs/image": sum(differences) / 3,
            "parity/max_abs/image": max(differences),
            "parity/kl/image": sum(kl) / 3,
        },
        rel=1e-12,
    )
    assert sums.means() == {"image": pytest.approx(sum(differences) / 3)}


def test_a_difference_at_the_start_ends_the_run_with_figures_and_remedy() -> None:
    gate = ParityGate(ParityConfig(max_abs=0.01), "float32")
    with pytest.raises(LearnerError, match=r"weight version 0.* 0\.5 nats a token of the image \(allowed: 0\.01\)"):
        gate.judge(sums_of(0.5, "image"), 0)


def test_a_difference_that_is_not_a_number_is_above_every_limit() -> None:
    with pytest.raises(LearnerError, match="nan nats a token of the semantic CoT"):
        ParityGate(ParityConfig(max_abs=1e9), "float32").judge(sums_of(math.nan), 0)


def test_after_a_good_start_a_difference_is_only_noted() -> None:
    gate = ParityGate(ParityConfig(max_abs=0.01, every_steps=5), "float32")
    assert gate.judge(sums_of(0.001), 0) is None
    note = gate.judge(sums_of(0.5), 5)
    assert note is not None
    assert "weight version 5" in note
    assert gate.judge(sums_of(0.001), 10) is None


def test_it_compares_at_the_start_and_every_so_many_steps() -> None:
    gate = ParityGate(ParityConfig(every_steps=5), "float32")
    gate.judge(sums_of(0.0), 0)
    assert [version for version in range(12) if gate.is_due(version)] == [0, 5, 10]


def test_a_step_without_a_token_to_compare_is_no_start() -> None:
    gate = ParityGate(ParityConfig(max_abs=0.01), "float32")
    assert gate.judge(ParitySums(torch.device("cpu")), 3) is None
    assert gate.is_due(4)
    with pytest.raises(LearnerError):
        gate.judge(sums_of(0.5), 4)


def test_the_limit_follows_the_dtype_unless_it_is_set() -> None:
    assert ParityConfig().limit("float32") < ParityConfig().limit("bfloat16")
    assert ParityConfig(max_abs=0.3).limit("float32") == 0.3


def test_guidance_may_magnify_the_rounding_of_image_tokens_but_not_of_the_plan() -> None:
    gate = ParityGate(ParityConfig(), "float32", guidance_scale=5.0)
    gate.judge(sums_of(0.0), 0)
    assert gate.judge(sums_of(0.008, "image"), 1) is None
    assert gate.judge(sums_of(0.01, "image"), 1) is not None
    assert gate.judge(sums_of(0.008, "cot"), 1) is not None
