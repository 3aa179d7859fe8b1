"""The Reward protocol, and the table of the rewards that bicot ships.

A reward is any class with a `score` method (see `Reward`), or a plain function of pictures and prompts that
returns numbers. A config names it by its name in `REGISTERED`, or as `module:Class` or `module:function`, so that
a user's own needs no change here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from configs.errors import ConfigError
from rollout.records import Prompt, Score, UInt8Array

REGISTERED: Mapping[str, str] = {
    "shapes": "rewards.shapes:ShapesReward",
    "hps": "rewards.hps:HPSReward",
    "grounding_dino": "rewards.grounding_dino:GroundingDinoReward",
    "git_vqa": "rewards.git_vqa:GitVqaReward",
    "orm": "rewards.orm:OrmReward",
    "pick_score": "rewards.clip_scores:PickScoreReward",
    "clip_score": "rewards.clip_scores:ClipScoreReward",
    "aesthetic": "rewards.aesthetic:AestheticReward",
    "image_reward": "rewards.image_reward:ImageReward",
    "vqa_score": "rewards.vqa_score:VqaScoreReward",
    "vlm_judge": "rewards.vlm_judge:VlmJudgeReward",
    "unified_reward": "rewards.vlm_judge:UnifiedReward",
    "ocr": "rewards.ocr:OcrReward",
    "nsfw": "rewards.nsfw:NsfwReward",
    "open_nsfw": "rewards.open_nsfw:OpenNsfwReward",
}


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


def reward_path(name: str) -> str:
    """`module:Class` or `module:function` of a reward's name. Imports nothing.

    Raises ConfigError for a name that is neither registered nor of that form.
    """
    if name in REGISTERED:
        return REGISTERED[name]
    module, _, attribute = name.partition(":")
    if module and attribute:
        return name
    raise ConfigError(
        f"rewards: '{name}' is not a reward; use one of {', '.join(sorted(REGISTERED))}, "
        "or module:Class or module:function for your own"
    )


class FunctionReward:
    """A plain function as a reward: it takes uint8 [B, height, width, 3] and B prompts, and returns B numbers."""

    def __init__(self, function: Callable[[UInt8Array, Sequence[Prompt]], Sequence[float]]) -> None:
        self._function = function

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """One Score a number. Raises TypeError when the function returns something else than numbers."""
        return [Score(float(value)) for value in self._function(pictures, prompts)]


def create_reward(name: str, options: Mapping[str, Any], device: str) -> Reward:
    """Import and make a reward; of a function, `options` are further keyword arguments, and `device` is not passed on.

    Raises ConfigError when it cannot be imported or refuses its options.
    """
    path = reward_path(name)
    module_name, _, attribute = path.partition(":")
    try:
        maker = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"rewards: cannot import {path} for reward '{name}': {error}") from error
    try:
        if inspect.isfunction(maker):
            inspect.signature(maker).bind(None, None, **options)
            return FunctionReward(partial(maker, **options))
        reward: Reward = maker(device=device, **options)
    except TypeError as error:
        raise ConfigError(f"rewards: '{name}' does not take options {dict(options)}: {error}") from error
    return reward
