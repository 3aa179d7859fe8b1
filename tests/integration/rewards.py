"""A user's own rewards, as a config names them: `tests.integration.rewards:MoodyReward`."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from rollout.records import Prompt, Score, UInt8Array

HANGS_S = 600.0
"""Longer than any test waits."""


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


class DeadlyReward:
    """Ends its process at the first picture."""

    def __init__(self, device: str) -> None:
        pass

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        os._exit(1)


class FaultyReward:
    """Brightness from 0 to 1, but for one fault. What it did is left in `folder`, which all replicas share.

    fault: `raise`, `nan` or `short` (one score too few) at every call; `hang` at every call; `hang once`: at the
    first call of all replicas together, whose process id is then in the file `hangs`.
    """

    def __init__(self, device: str, fault: str, folder: str) -> None:
        self._fault = fault
        self._folder = Path(folder)

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        with (self._folder / "calls").open("a") as calls:
            calls.write(f"{os.getpid()} {os.environ.get('FAULTY_NOTE', '')}\n")
        if self._fault == "raise":
            raise RuntimeError("no luck")
        if self._fault == "hang" or (self._fault == "hang once" and not (self._folder / "hangs").exists()):
            (self._folder / "hangs").write_text(str(os.getpid()))
            threading.Event().wait(HANGS_S)
        scores = [Score(math.nan if self._fault == "nan" else float(picture.mean() / 255)) for picture in pictures]
        return scores[1:] if self._fault == "short" else scores


class HugeReward:
    """0 and 3e38 in turn: each is finite in float32, and what is made of their difference is not."""

    def __init__(self, device: str) -> None:
        pass

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(3e38 * (index % 2)) for index in range(len(prompts))]


class KeyedReward:
    """Brightness from 0 to 1, for who has a key: raises unless the environment variables `names` are set."""

    def __init__(self, device: str, names: Sequence[str]) -> None:
        missing = [name for name in names if not os.environ.get(name, "").startswith("s3cr3t")]
        if missing:
            raise ValueError(f"{', '.join(missing)} not in the environment")

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(picture.mean() / 255)) for picture in pictures]


class ChannelReward:
    """How bright one colour of the picture is: differs from picture to picture, also with a policy that draws noise."""

    def __init__(self, device: str, channel: int) -> None:
        self.channel = channel

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(picture[..., self.channel].mean()) / 255) for picture in pictures]


class BreaksWhenMade:
    """Can be imported, and not made."""

    def __init__(self, device: str) -> None:
        raise RuntimeError("no more of this")

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        raise AssertionError("it was never made")
