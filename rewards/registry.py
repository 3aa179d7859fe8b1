"""The table of the rewards that bicot ships, and how a config's name becomes a reward.

A config names it by its name in `REGISTERED`, or as `module:Class` or `module:function`, so that
a user's own needs no change here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from configs.errors import ConfigError
from rewards.protocol import FunctionReward, Reward

REGISTERED: Mapping[str, str] = {
    "shapes": "rewards.shapes.reward:ShapesReward",
    "hps": "rewards.preference.hps:HPSReward",
    "grounding_dino": "rewards.objects.grounding_dino:GroundingDinoReward",
    "git_vqa": "rewards.alignment.git_vqa:GitVqaReward",
    "orm": "rewards.alignment.orm:OrmReward",
    "pick_score": "rewards.alignment.clip_scores:PickScoreReward",
    "clip_score": "rewards.alignment.clip_scores:ClipScoreReward",
    "aesthetic": "rewards.preference.aesthetic:AestheticReward",
    "image_reward": "rewards.preference.image_reward:ImageReward",
    "vqa_score": "rewards.alignment.vqa_score:VqaScoreReward",
    "vlm_judge": "rewards.judge.vlm_judge:VlmJudgeReward",
    "unified_reward": "rewards.judge.vlm_judge:UnifiedReward",
    "ocr": "rewards.text.ocr:OcrReward",
    "nsfw": "rewards.safety.nsfw:NsfwReward",
    "open_nsfw": "rewards.safety.open_nsfw:OpenNsfwReward",
}

MOVED: Mapping[str, str] = {
    "rewards.shapes": "rewards.shapes.reward",
    "rewards.shapes_neatness": "rewards.shapes.neatness",
    "rewards.hps": "rewards.preference.hps",
    "rewards.image_reward": "rewards.preference.image_reward",
    "rewards.aesthetic": "rewards.preference.aesthetic",
    "rewards.grounding_dino": "rewards.objects.grounding_dino",
    "rewards.git_vqa": "rewards.alignment.git_vqa",
    "rewards.orm": "rewards.alignment.orm",
    "rewards.clip_scores": "rewards.alignment.clip_scores",
    "rewards.vqa_score": "rewards.alignment.vqa_score",
    "rewards.vlm_judge": "rewards.judge.vlm_judge",
    "rewards.ocr": "rewards.text.ocr",
    "rewards.nsfw": "rewards.safety.nsfw",
    "rewards.open_nsfw": "rewards.safety.open_nsfw",
}
"""Modules of bicot that were elsewhere once: configs of earlier runs name them, and must still resume."""


def reward_path(name: str) -> str:
    """`module:Class` or `module:function` of a reward's name. Imports nothing.

    Raises ConfigError for a name that is neither registered nor of that form.
    """
    if name in REGISTERED:
        return REGISTERED[name]
    module, _, attribute = name.partition(":")
    if module and attribute:
        return f"{MOVED.get(module, module)}:{attribute}"
    raise ConfigError(
        f"rewards: '{name}' is not a reward; use one of {', '.join(sorted(REGISTERED))}, "
        "or module:Class or module:function for your own"
    )


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the reward can be imported and takes these options. Makes nothing, loads no model."""
    maker = _import(name)
    given = (None, None) if inspect.isfunction(maker) else ()
    device = {} if inspect.isfunction(maker) else {"device": "cpu"}
    try:
        inspect.signature(maker).bind(*given, **device, **options)
    except TypeError as error:
        raise ConfigError(f"rewards: '{name}' does not take options {dict(options)}: {error}") from error
    except ValueError:
        return  # it has no signature to hold them against


def _import(name: str) -> Any:
    path = reward_path(name)
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"rewards: cannot import {path} for reward '{name}': {error}") from error


def create_reward(name: str, options: Mapping[str, Any], device: str) -> Reward:
    """Import and make a reward; of a function, `options` are further keyword arguments, and `device` is not passed on.

    Raises ConfigError when it cannot be imported or refuses its options.
    """
    maker = _import(name)
    try:
        if inspect.isfunction(maker):
            inspect.signature(maker).bind(None, None, **options)
            return FunctionReward(partial(maker, **options))
        reward: Reward = maker(device=device, **options)
    except TypeError as error:
        raise ConfigError(f"rewards: '{name}' does not take options {dict(options)}: {error}") from error
    return reward
