"""The loss and the advantages once more: slow and obvious. Loops over tokens, plain Python numbers, no broadcasting.

Gradients come by the complex step: with x + ih in place of x, the imaginary part of f over h is f'(x)
to machine precision, as long as f is made of smooth steps. Comparisons look at real parts alone, and
what is to carry no gradient is cut to its real part.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from learner.objective import LossSettings

Floats = NDArray[np.float64]
_STEP = 1e-30


@dataclass
class SlowTokens:
    """One phase of some trajectories; all [B, N] but `advantages` and `row_weights`, which are [B]."""

    current: Floats
    behaviour: Floats
    reference: Floats | None
    advantages: Floats
    mask: NDArray[np.bool_]
    old: Floats | None = None
    entropy: Floats | None = None
    row_weights: Floats | None = None

    @classmethod
    def random(cls, seed: int, num_rows: int = 5, num_tokens: int = 7) -> SlowTokens:
        """Ragged: some rows may be empty."""
        rng = np.random.default_rng(seed)
        shape = (num_rows, num_tokens)
        current = -rng.gamma(2.0, 1.0, shape)
        lengths = rng.integers(0, num_tokens + 1, num_rows)
        return cls(
            current,
            current + rng.normal(0, 0.3, shape),
            current + rng.normal(0, 0.3, shape),
            rng.normal(0, 1, num_rows),
            np.arange(num_tokens) < lengths[:, None],
            old=current + rng.normal(0, 0.3, shape),
            entropy=rng.random(shape),
            row_weights=rng.random(num_rows),
        )

    def rows(self, rows: slice) -> SlowTokens:
        """Some of the trajectories."""
        values = {name: value[rows] for name, value in vars(self).items() if value is not None}
        return replace(self, **values)


@dataclass
class SlowSums:
    """Sums over tokens."""

    loss: complex = 0.0
    kl: complex = 0.0
    behaviour_kl: complex = 0.0
    num_clipped: int = 0
    num_mismatched: int = 0
    ratio: complex = 0.0
    ratios: list[float] = field(default_factory=list)


def slow_terms(tokens: SlowTokens, settings: LossSettings, current: NDArray[np.complex128] | None = None) -> SlowSums:
    """The sums of one phase; `current` stands in for tokens.current, to differentiate by it."""
    if current is None:
        current = tokens.current.astype(np.complex128)
    sums = SlowSums()
    for row in range(tokens.mask.shape[0]):
        columns = [column for column in range(tokens.mask.shape[1]) if tokens.mask[row, column]]
        advantage = float(tokens.advantages[row])
        row_weight = 1.0 if tokens.row_weights is None else float(tokens.row_weights[row])
        old_row = tokens.behaviour[row] if tokens.old is None else tokens.old[row]
        sequence_ratio = cmath.exp(_mean([current[row, column] - old_row[column] for column in columns]))
        sequence_k = math.exp(_mean([old_row[column] - tokens.behaviour[row, column] for column in columns]).real)
        for column in columns:
            p, q, mu = complex(current[row, column]), float(old_row[column]), float(tokens.behaviour[row, column])
            ratio = cmath.exp(p - q)
            objective, is_clipped = _objective(p, ratio, sequence_ratio, advantage, settings)
            weight, is_mismatched = _mismatch_weight(math.exp(q - mu), sequence_k, settings)
            token_loss = -settings.weight * weight * objective
            if tokens.reference is not None:
                gap = float(tokens.reference[row, column]) - p
                kl = cmath.exp(gap) - gap - 1
                if settings.kl_clip is not None and kl.real > settings.kl_clip:
                    kl = complex(settings.kl_clip)  # a constant: it has no slope
                sums.kl += kl
                token_loss += settings.kl_coef * kl
            if settings.entropy_coef and tokens.entropy is not None:
                token_loss -= settings.entropy_coef * float(tokens.entropy[row, column])
            sums.loss += row_weight * token_loss
            sums.behaviour_kl += math.exp(p.real - mu) - (p.real - mu) - 1
            sums.num_clipped += is_clipped
            sums.num_mismatched += is_mismatched
            sums.ratio += ratio
            sums.ratios.append(ratio.real)
    return sums


def _mean(values: Sequence[complex]) -> complex:
    return complex(sum(values) / len(values)) if values else 0j


def _objective(
    p: complex, ratio: complex, sequence_ratio: complex, advantage: float, settings: LossSettings
) -> tuple[complex, bool]:
    low = -math.inf if settings.clip_low is None else 1 - settings.clip_low
    high = math.inf if settings.clip_high is None else 1 + settings.clip_high
    if settings.policy_loss == "cispo":
        weight = min(max(ratio.real, low), high)  # its real part: the weight carries no gradient
        return weight * advantage * p, weight != ratio.real
    if settings.policy_loss == "gspo":
        ratio = sequence_ratio
    clipped: complex = low if ratio.real < low else high if ratio.real > high else ratio
    if (clipped * advantage).real < (ratio * advantage).real:
        return clipped * advantage, True
    return ratio * advantage, False


def _mismatch_weight(k: float, sequence_k: float, settings: LossSettings) -> tuple[float, bool]:
    low, high = settings.mismatch.low, settings.mismatch.high
    match settings.mismatch.correction:
        case "tis":
            return min(k, high), k > high
        case "icepop":
            inside = low <= k <= high
            return (k if inside else 0.0), not inside
        case "sequence_mask":
            inside = low <= sequence_k <= high
            return float(inside), not inside
    return 1.0, False


def slow_gradient(tokens: SlowTokens, settings: LossSettings) -> Floats:
    """Of the loss, by each log-probability under the policy; [B, N]."""

    def loss(current: NDArray[np.complex128]) -> complex:
        return slow_terms(tokens, settings, current).loss

    return complex_step_gradient(loss, tokens.current)


def complex_step_gradient(function: Callable[[NDArray[np.complex128]], complex], at: Floats) -> Floats:
    """The gradient of `function` at [B, N], one entry after the other."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = at.astype(np.complex128)
        moved[place] += 1j * _STEP
        gradient[place] = function(moved).imag / _STEP
    return gradient


def slow_group_advantages(rewards: Sequence[Sequence[float]], epsilon: float) -> list[list[float]]:
    """(R - mean) / (unbiased std + epsilon), group by group."""
    result = []
    for group in rewards:
        mean = sum(group) / len(group)
        variance = sum((reward - mean) ** 2 for reward in group) / (len(group) - 1)
        result.append([(reward - mean) / (math.sqrt(variance) + epsilon) for reward in group])
    return result


def slow_centred(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """R - mean, group by group."""
    return [[reward - sum(group) / len(group) for reward in group] for group in rewards]


def slow_batch_advantages(rewards: Sequence[Sequence[float]], epsilon: float) -> list[list[float]]:
    """(R - mean of the group), whitened over the whole batch."""
    centred = slow_centred(rewards)
    everything = [value for group in centred for value in group]
    mean = sum(everything) / len(everything)
    std = math.sqrt(sum((value - mean) ** 2 for value in everything) / (len(everything) - 1))
    return [[(value - mean) / (std + epsilon) for value in group] for group in centred]


def slow_sum_of_rewards(
    columns: Mapping[str, Sequence[Sequence[float]]],
    weights: Mapping[str, float],
    normalized: Collection[str],
    epsilon: float,
) -> list[list[float]]:
    """Each reward, or its z-score within its group over the trajectories that it applies to, weighted and summed."""
    first = next(iter(columns.values()))
    result = [[0.0] * len(group) for group in first]
    for name, column in columns.items():
        for number, group in enumerate(column):
            values = [value for value in group if not math.isnan(value)]
            if name not in normalized:
                for place, value in enumerate(group):
                    result[number][place] += 0.0 if math.isnan(value) else weights[name] * value
                continue
            if len(values) < 2 or max(values) == min(values):
                continue
            mean = sum(values) / len(values)
            std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
            for place, value in enumerate(group):
                if not math.isnan(value):
                    result[number][place] += weights[name] * (value - mean) / (std + epsilon)
    return result
