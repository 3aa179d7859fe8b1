"""Several rewards of one group become one number a picture, and one line for people.

    R_i = sum over the rewards k that apply to picture i of weight_k * score_k,i

(T2I-R1, section 3.3, sums with all weights 1.) A reward that does not apply is left out; a reward that could
not be had is an error, and never counts as 0: that would be a verdict on the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.errors import RewardError
from rollout.records import Float32Array, Score

MAX_EXPLANATION_CHARACTERS = 200
"""Of one reward's part of an explanation; the rest is cut off."""


@dataclass(frozen=True, slots=True)
class Combined:
    """The combined scores of one group."""

    rewards: Float32Array
    """float32 [G]."""
    columns: Mapping[str, Float32Array]
    """name -> float32 [G]: each reward as it was given, without its weight; NaN where it does not apply."""
    explanations: tuple[str, ...]
    """G texts for people."""


def combine(scores: Mapping[str, Sequence[Score] | None], weights: Mapping[str, float]) -> Combined:
    """The weighted sum of all rewards that apply to each of the G pictures of a group.

    scores: name -> G Scores, or None for a reward that could not be had; weights: name -> factor, of the same names.
    Raises RewardError, naming the reward, when one is missing, short or not finite, and when no reward applies to a
    picture; ValueError when a score has no weight.
    """
    unweighted = sorted(set(scores) - set(weights))
    if unweighted:
        raise ValueError(f"no weight is given for reward {', '.join(unweighted)}")
    given = _check_complete(scores, weights)
    columns = {name: _column(name, given[name]) for name in weights}
    table = np.stack([columns[name].astype(np.float64) for name in weights])
    factors = np.array([[weights[name]] for name in weights], dtype=np.float64)
    applies_nowhere = np.isnan(table).all(axis=0)
    if applies_nowhere.any():
        picture = int(applies_nowhere.argmax())
        raise RewardError(
            f"none of the rewards {', '.join(weights)} applies to the prompt of picture {picture}; "
            "add a reward that applies to every prompt"
        )
    with np.errstate(over="ignore"):
        rewards = np.nansum(table * factors, axis=0).astype(np.float32)
    if not np.isfinite(rewards).all():
        raise RewardError(f"the weighted sum of {', '.join(weights)} is not finite in float32; lower the weights")
    explanations = tuple(
        " | ".join(explain(name, given[name][i]) for name in weights if given[name][i].value is not None)
        for i in range(len(rewards))
    )
    return Combined(rewards=rewards, columns=columns, explanations=explanations)


def explain(name: str, score: Score) -> str:
    """One short text: `shapes 0.42: found red star; missing blue circle; precision 1.00`.

    Parts that are text, lists of text, numbers or truth values are shown; others (boxes) are for programs.
    """
    texts = {key: _part_as_text(value) for key, value in score.parts.items()}
    tail = "; ".join(f"{key} {text}" for key, text in texts.items() if text)
    if len(tail) > MAX_EXPLANATION_CHARACTERS:
        tail = f"{tail[: MAX_EXPLANATION_CHARACTERS - 3]}..."
    value = "does not apply" if score.value is None else f"{score.value:.2f}"
    return f"{name} {value}" + (f": {tail}" if tail else "")


def _check_complete(
    scores: Mapping[str, Sequence[Score] | None], weights: Mapping[str, float]
) -> dict[str, Sequence[Score]]:
    given: dict[str, Sequence[Score]] = {}
    for name in weights:
        column = scores.get(name)
        if column is None:
            raise RewardError(f"reward '{name}' is missing")
        given[name] = column
    sizes = {name: len(column) for name, column in given.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise RewardError(f"rewards scored different numbers of pictures, or none: {sizes}")
    return given


def _column(name: str, scores: Sequence[Score]) -> Float32Array:
    for i, score in enumerate(scores):
        if score.value is not None and not math.isfinite(score.value):
            raise RewardError(f"reward '{name}' gave picture {i} the value {score.value}, which is not finite")
    return np.array([np.nan if score.value is None else score.value for score in scores], dtype=np.float32)


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
