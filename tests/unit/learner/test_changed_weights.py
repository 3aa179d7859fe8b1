"""What of bfloat16 weights a step changes, against arithmetic on the grid of bfloat16."""

from __future__ import annotations

import math
import random
from statistics import mean

import pytest

from scripts.changed_weights import changes


def test_the_first_step_changes_the_weights_whose_grid_is_finer_than_two_learning_rates() -> None:
    """AdamW's first step is the learning rate in the direction of the gradient, and a weight on the grid goes to the
    next value when it has moved by more than half of the distance."""
    lr, chance = 1e-6, random.Random(1)
    magnitudes = [abs(chance.gauss(0.0, 0.02)) for _ in range(200_000)]
    expected = mean(2.0 ** (math.frexp(magnitude)[1] - 8) < 2 * lr for magnitude in magnitudes)
    (first,) = changes(0.02, 0.3, lr, num_steps=1, num_values=200_000, seed=0)
    assert first.values == pytest.approx(expected, abs=0.002)
    assert 0.01 < expected < 0.03


@pytest.mark.parametrize("signal", [0.0, 0.3, 10.0])
def test_a_step_at_1e_6_changes_a_few_per_cent_of_the_values_and_half_as_many_bytes(signal: float) -> None:
    last = changes(0.02, signal, 1e-6, num_steps=30, num_values=200_000, seed=0)[-1]
    assert 0.005 < last.values < 0.05
    assert last.bytes == pytest.approx(last.values / 2, rel=0.1)
