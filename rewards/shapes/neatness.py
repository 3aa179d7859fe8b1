"""How neatly a picture of the shapes world is drawn, whatever it shows: its stand-in for a preference score.

    score = 0.20 + 0.15 · mean over the drawn objects of (form · vividness)        in [0.20, 0.35]

The range is that of HPSv2.1 on pictures of one prompt: a reward this quiet is nearly silent in a plain sum beside
one from 0 to 1, which is what `python -m cluster.study rewards` is about.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.shapes.detector import DetectedObject, detect_objects
from rollout.records import Prompt, Score, UInt8Array

LOWEST, RANGE = 0.20, 0.15


class NeatnessReward:
    """Scores pictures of the shapes world; see the top of this file. Implements `rewards.protocol.Reward`."""

    def __init__(self, device: str = "cpu") -> None:
        """`device` is what every reward is given; this one computes on the CPU, whatever it says."""

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """One Score a picture, uint8 [B, 64, 64, 3]. A picture without objects is not neat.

        Raises ValueError for pictures of another size.
        """
        return [_score(drawing.objects) for drawing in detect_objects(pictures)]


def _score(objects: Sequence[DetectedObject]) -> Score:
    neatness = sum(item.iou * item.vividness for item in objects) / len(objects) if objects else 0.0
    return Score(LOWEST + RANGE * min(1.0, neatness), {"neatness": neatness, "objects": len(objects)})
