"""What a reward is: any class with a `score` method, or a plain function of pictures and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from rollout.records import Prompt, Score, UInt8Array


class Reward(Protocol):
    """Scores pictures. Made once per replica, with the config's `options` as keyword arguments and
    `device` ("cpu" or "cuda").

    One that may score the same picture differently another time has a true attribute `is_random`: `cache: true` is
    refused for it.
    """

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """One Score a picture, in order.

        pictures: uint8 [B, height, width, 3], RGB; prompts: the B prompts they were drawn for.
        The score of a picture must not depend on what else is in the batch.
        """


class FunctionReward:
    """A plain function as a reward: it takes uint8 [B, height, width, 3] and B prompts, and returns B numbers."""

    def __init__(self, function: Callable[[UInt8Array, Sequence[Prompt]], Sequence[float]]) -> None:
        self._function = function

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """One Score a number. Raises TypeError when the function returns something else than numbers."""
        return [Score(float(value)) for value in self._function(pictures, prompts)]
