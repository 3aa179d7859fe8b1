"""The table of the rewards that bicot ships, and how a config's name becomes a reward.

A config names it by its name in `REGISTERED`, or as `module:Class` or `module:function`, so that
a user's own needs no change here.
"""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import BicotError, ConfigError, RewardError
from rewards.calling import LoadedReward
from rewards.calling.loaded import Applies, takes

REGISTERED: Mapping[str, str] = {
    "shapes": "rewards.shapes.reward:ShapesReward",
    "hps": "rewards.preference.hps:HPSReward",
    "hpsv3": "rewards.preference.hpsv3:Hpsv3Reward",
    "grounding_dino": "rewards.objects.grounding_dino:GroundingDinoReward",
    "geneval": "rewards.objects.geneval_reward:GenEvalReward",
    "git_vqa": "rewards.alignment.git_vqa:GitVqaReward",
    "orm": "rewards.alignment.orm:OrmReward",
    "pick_score": "rewards.alignment.clip_scores:PickScoreReward",
    "clip_score": "rewards.alignment.clip_scores:ClipScoreReward",
    "aesthetic_v2_5": "rewards.preference.aesthetic_v2_5:AestheticV25Reward",
    "aesthetic": "rewards.preference.aesthetic:AestheticReward",
    "image_reward": "rewards.preference.image_reward:ImageReward",
    "vqa_score": "rewards.alignment.vqa_score:VqaScoreReward",
    "vlm_judge": "rewards.judge.vlm_judge:VlmJudgeReward",
    "http": "rewards.remote.http_reward:HttpReward",
    "unified_reward": "rewards.judge.unified_reward:UnifiedReward",
    "ocr": "rewards.text.ocr:OcrReward",
    "logprob_judge": "rewards.judge.logprob_judge:LogprobJudgeReward",
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


MOVED_CLASSES: Mapping[str, str] = {
    "rewards.judge.vlm_judge:UnifiedReward": "rewards.judge.unified_reward:UnifiedReward",
}
"""The same of single classes, by the path that `MOVED` gives."""


def reward_path(name: str) -> str:
    """`module:Class` or `module:function` of a reward's name. Imports nothing.

    Raises ConfigError for a name that is neither registered nor of that form.
    """
    if name in REGISTERED:
        return REGISTERED[name]
    module, _, attribute = name.partition(":")
    if module and attribute:
        path = f"{MOVED.get(module, module)}:{attribute}"
        return MOVED_CLASSES.get(path, path)
    raise ConfigError(
        f"rewards: '{name}' is not a reward; use one of {', '.join(sorted(REGISTERED))}, "
        "or module:Class or module:function for your own"
    )


def create_reward(kind: str, options: Mapping[str, Any], device: str, name: str | None = None) -> LoadedReward:
    """Import and make a reward; what it is made of, `rewards.protocol` says. name: of the config, for messages.

    Raises ConfigError when it cannot be imported or refuses its options, and RewardError when making it fails.
    """
    maker = import_reward(kind)
    check_options(kind, options, maker)
    made = maker
    if inspect.isclass(maker):
        try:
            made = maker(**options, **({"device": device} if _wants_device(maker) else {}))
        except BicotError:
            raise
        except Exception as error:
            raise RewardError(
                f"reward '{name or kind}' cannot be made: {type(error).__name__}: {error} ({_place_of(error)})"
            ) from error
    return LoadedReward(made, {} if inspect.isclass(maker) else options, _applicability(maker, options))


def import_reward(kind: str) -> Any:
    """The class or callable behind a config's name or kind. Raises ConfigError, also for what is neither."""
    path = reward_path(kind)
    module_name, _, attribute = path.partition(":")
    try:
        maker = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"rewards: cannot import {path} for reward '{kind}': {error}") from error
    if inspect.isclass(maker) and not _has_method(maker) and not any("__call__" in c.__dict__ for c in maker.__mro__):
        raise ConfigError(f"rewards: the class {path} has no method score, score_group or __call__")
    if not callable(maker) and not _has_method(maker):
        raise ConfigError(
            f"rewards: {path} is {type(maker).__name__} {maker!r}; a reward is a class, a function, or another callable"
        )
    return maker


def check_options(kind: str, options: Mapping[str, Any], maker: Any = None) -> None:
    """Raise ConfigError unless the reward takes these options. Makes nothing and loads no model."""
    maker = import_reward(kind) if maker is None else maker
    pictures_and_prompts: tuple[Any, ...] = ()
    given = dict(options)
    try:
        if inspect.isclass(maker):
            signature = inspect.signature(maker)
            given |= {"device": "cpu"} if _wants_device(maker) else {}
        elif _has_method(maker):
            signature = inspect.signature(lambda: None)  # it is made, and can be told nothing more
        else:
            signature = inspect.signature(maker)
            pictures_and_prompts = (None, None)
            given |= {"plans": ()} if takes(maker, "plans") else {}
    except ValueError:
        return  # written in C, without a signature
    try:
        signature.bind(*pictures_and_prompts, **given)
    except TypeError as error:
        known = [name for name in signature.parameters if name not in ("device", "plans")][len(pictures_and_prompts) :]
        raise ConfigError(
            f"rewards: '{kind}' does not take options {dict(options)}: {error}; "
            + (f"it has {', '.join(known)}" if known else "it has none")
        ) from None


def applicability(kind: str, options: Mapping[str, Any]) -> Applies | None:
    """What the reward knows of a prompt without a picture; None where it does not say. Raises ConfigError."""
    return _applicability(import_reward(kind), options)


def _applicability(maker: Any, options: Mapping[str, Any]) -> Applies | None:
    applies_to = getattr(maker, "applies_to", None)
    return None if applies_to is None else lambda prompt: bool(applies_to(prompt, options))


def _has_method(maker: Any) -> bool:
    return hasattr(maker, "score") or hasattr(maker, "score_group")


def _wants_device(maker: Any) -> bool:
    try:
        parameters = inspect.signature(maker).parameters
    except ValueError:
        return True
    return "device" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _place_of(error: BaseException) -> str:
    """`taste.py:12, in __init__`: where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
