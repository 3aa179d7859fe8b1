"""A user's own reward, as a config names it: `tests.integration.rewards:MoodyReward`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rollout.records import Prompt, Score, UInt8Array


class MoodyReward:
    """Brightness from 0 to 1; raises at prompts with the word `cursed`, gives NaN for those with `hollow`."""

    def __init__(self, device: str) -> None:
        pass

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        if any("cursed" in prompt.text for prompt in prompts):
            raise ValueError("this picture is cursed")
        return [
            Score(math.nan if "hollow" in prompt.text else float(picture.mean() / 255))
            for picture, prompt in zip(pictures, prompts, strict=True)
        ]
