"""The neatness reward: a quiet reward that prefers what is drawn well, whatever it shows."""

from __future__ import annotations

import random

import numpy as np

from rewards.registry import create_reward
from rollout.shapes import load_split, render
from rollout.shapes.world import sample_plan

NAME = "rewards.shapes.neatness:NeatnessReward"


def test_neat_pictures_score_above_faded_ones_and_an_empty_one_lowest() -> None:
    prompts = load_split("train", 24)
    rng = random.Random(0)
    neat = np.stack([render(sample_plan(prompt, rng), rng) for prompt in prompts])
    faded = (255 - (255 - neat.astype(np.int32)) // 2).astype(np.uint8)
    empty = np.full_like(neat[:1], 255)
    reward = create_reward(NAME, {}, "cpu")
    values = [[score.value for score in reward.score(batch, prompts[: len(batch)])] for batch in (neat, faded, empty)]
    assert all(value > other for value, other in zip(values[0], values[1], strict=True))
    assert values[2] == [0.20]
    assert all(0.20 <= value <= 0.35 for value in values[0])
    assert np.mean(values[0]) > 0.33
