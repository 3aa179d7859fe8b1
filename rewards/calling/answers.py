"""What a reward returns, as one Score or one error a picture.

    list, tuple, generator, NumPy array or tensor of B ─► number        ─► Score, if finite
                                                          None          ─► Score(None): does not apply
                                                          Score         ─► itself, its parts made plain
                                                          RewardError   ─► this picture could not be scored

Another number of answers than of pictures, or another kind of answer, is a mistake in the reward, and no picture's.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from configs.errors import RewardError
from rewards.calling.parts import plain_parts
from rollout.records import Score

Answer = Score | RewardError
MAX_MESSAGE_CHARACTERS = 500
"""Of an error's text; the rest is cut off."""


class WrongAnswerError(RewardError):
    """A reward returned something else than one answer a picture: no other picture would mend that."""


def read_answers(returned: Any, num_pictures: int) -> list[Answer]:
    """One answer a picture, in order. Raises WrongAnswerError."""
    answers = [_read_answer(value) for value in _as_list(returned, num_pictures)]
    if len(answers) != num_pictures:
        raise WrongAnswerError(f"it returned {len(answers)} scores for {num_pictures} pictures")
    return answers


def shorten(text: str, num_characters: int = MAX_MESSAGE_CHARACTERS) -> str:
    """The text, or its beginning."""
    return text if len(text) <= num_characters else f"{text[:num_characters]}... ({len(text):,} characters)"


def _as_list(returned: Any, num_pictures: int) -> list[Any]:
    shape = getattr(returned, "shape", None)
    if shape is not None and hasattr(returned, "tolist"):  # of NumPy or torch, wherever it lies
        if tuple(shape) not in ((num_pictures,), (num_pictures, 1)):
            raise WrongAnswerError(f"it returned numbers of shape {list(shape)} for {num_pictures} pictures")
        return list(returned.reshape(-1).tolist())
    if isinstance(returned, str | bytes | Mapping | set | frozenset) or not isinstance(returned, Iterable):
        raise WrongAnswerError(
            f"it must return a list of one score a picture, in order, not {shorten(_describe(returned), 80)}"
        )
    return list(returned)


def _read_answer(value: Any) -> Answer:
    if isinstance(value, Score):
        number = _number(value.value)
        parts = value.parts if isinstance(value.parts, Mapping) else {"parts": value.parts}
        return number if isinstance(number, RewardError) else Score(number, plain_parts(parts))
    if isinstance(value, RewardError):
        return type(value)(shorten(str(value)))
    number = _number(value)
    return number if isinstance(number, RewardError) else Score(number)


def _number(value: Any) -> float | RewardError | None:
    """A finite number, None, or the error of a picture whose number is not finite. Raises WrongAnswerError."""
    if value is None:
        return None
    if hasattr(value, "tolist"):  # a NumPy or torch scalar, or one of shape [1]
        value = value.tolist()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, numbers.Real):
        raise WrongAnswerError(
            f"a score must be a number, a Score, or None where it does not apply, not {shorten(_describe(value), 80)}"
        )
    number = float(value)
    return number if math.isfinite(number) else RewardError(f"a score must be a finite number, not {number!r}")


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
