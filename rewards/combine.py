"""Several rewards of one group become one number a picture, and one line for people.

    R_i = sum over the rewards k that apply to picture i of weight_k * score_k,i

(T2I-R1, section 3.3, sums with all weights 1.) A reward that does not apply is left out. A picture that a reward could
not score has no R: neither 0, which would be a verdict on it, nor a sum of the others, which would be another scale
than its neighbours'. A reward of weight 0 is watched: its column is kept, and its errors cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.errors import NoRewardAppliesError, RewardError
from rewards.calling import Answer
from rollout.records import Float32Array, Score

MAX_EXPLANATION_CHARACTERS = 200
"""Of one reward's part of an explanation; the rest is cut off."""


@dataclass(frozen=True, slots=True)
class Combined:
    """The combined scores of one group."""

    rewards: Float32Array
    """float32 [G]; NaN for a picture that could not be scored."""
    columns: Mapping[str, Float32Array]
    """name -> float32 [G]: each reward as it was given, without its weight; NaN where it does not apply or failed."""
    explanations: tuple[str, ...]
    """G texts for people."""
    errors: Mapping[int, RewardError]
    """Place of a picture without a reward -> why."""


def combine(answers: Mapping[str, Sequence[Answer] | None], weights: Mapping[str, float]) -> Combined:
    """The weighted sum of all rewards that apply to each of the G pictures of a group.

    answers: name -> G Scores or errors, or None for a reward that could not be had; weights: name -> factor, of the
    same names, 0 to watch.
    Raises RewardError, naming the reward, when one of a weight is missing, or any is short or not finite;
    NoRewardAppliesError when no reward of a weight applies to a picture; ValueError when a reward has no weight.
    """
    unweighted = sorted(set(answers) - set(weights))
    if unweighted:
        raise ValueError(f"no weight is given for reward {', '.join(unweighted)}")
    given = _check_complete(answers, weights)
    columns = {name: _column(name, given[name]) for name in weights}
    table = np.stack([columns[name].astype(np.float64) for name in weights])
    factors = np.array([[weights[name]] for name in weights], dtype=np.float64)
    errors = _errors(given, weights)
    applies_nowhere = np.isnan(table[factors[:, 0] != 0]).all(axis=0)
    for picture in np.flatnonzero(applies_nowhere):
        if int(picture) not in errors:
            names = ", ".join(name for name in weights if weights[name])
            raise NoRewardAppliesError(
                f"none of the rewards {names} applies to the prompt of picture {picture}; "
                "add a reward that applies to every prompt"
            )
    with np.errstate(over="ignore"):
        rewards = np.nansum(table * factors, axis=0).astype(np.float32)
    if not np.isfinite(rewards).all():
        raise RewardError(f"the weighted sum of {', '.join(weights)} is not finite in float32; lower the weights")
    rewards[list(errors)] = np.nan
    explanations = tuple(
        " | ".join(text for name in weights if (text := _explain_answer(name, given[name][i])))
        for i in range(len(rewards))
    )
    return Combined(rewards=rewards, columns=columns, explanations=explanations, errors=errors)


def explain(name: str, score: Score) -> str:
    """One short text: `shapes 0.42: found red star; missing blue circle; precision 1.00`.

    Parts that are text, lists of text, numbers or truth values are shown; others (boxes) are for programs.
    """
    texts = {key: _part_as_text(value) for key, value in score.parts.items()}
    tail = _cut("; ".join(f"{key} {text}" for key, text in texts.items() if text))
    value = "does not apply" if score.value is None else f"{score.value:.2f}"
    return f"{name} {value}" + (f": {tail}" if tail else "")


def _explain_answer(name: str, answer: Answer) -> str:
    """Empty where the reward does not apply."""
    if isinstance(answer, RewardError):
        return f"{name} failed"
    return "" if answer.value is None else explain(name, answer)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_EXPLANATION_CHARACTERS else f"{text[: MAX_EXPLANATION_CHARACTERS - 3]}..."


def _check_complete(
    answers: Mapping[str, Sequence[Answer] | None], weights: Mapping[str, float]
) -> dict[str, Sequence[Answer]]:
    sizes = {name: len(column) for name, column in answers.items() if column is not None}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise RewardError(f"rewards scored different numbers of pictures, or none: {sizes}")
    given: dict[str, Sequence[Answer]] = {}
    for name, weight in weights.items():
        column = answers.get(name)
        if column is None and (weight or not sizes):
            raise RewardError(f"reward '{name}' is missing")
        missing = RewardError(f"reward '{name}' is missing")
        given[name] = [missing] * next(iter(sizes.values())) if column is None else column
    return given


def _column(name: str, answers: Sequence[Answer]) -> Float32Array:
    values = [None if isinstance(answer, RewardError) else answer.value for answer in answers]
    for i, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise RewardError(f"reward '{name}' gave picture {i} the value {value}, which is not finite")
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


def _errors(given: Mapping[str, Sequence[Answer]], weights: Mapping[str, float]) -> dict[int, RewardError]:
    """Place of a picture -> the first error that costs it its reward."""
    errors: dict[int, RewardError] = {}
    for name, weight in weights.items():
        for i, answer in enumerate(given[name]):
            if weight and isinstance(answer, RewardError):
                errors.setdefault(i, answer)
    return errors


def _part_as_text(value: Any) -> str:
    """Empty for what people need not see."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return ""
