"""rewards/registry.py: what a config may name, and a user's own class or function."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from configs.errors import ConfigError
from rewards.registry import REGISTERED, create_reward, reward_path
from rollout.records import Prompt, Score, UInt8Array

PICTURES = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (0, 102, 255)])
PROMPTS = [Prompt(str(i), "a wall") for i in range(3)]


class Darkness:
    def __init__(self, device: str, most: float = 1.0) -> None:
        self.most = most

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(self.most - float(picture.mean()) / 255) for picture in pictures]


def brightness(pictures: UInt8Array, prompts: Sequence[Prompt], scale: float = 1.0) -> list[float]:
    return [scale * float(level) / 255 for level in pictures.mean(axis=(1, 2, 3))]


def words(pictures: UInt8Array, prompts: Sequence[Prompt]) -> Any:
    return [prompt.text for prompt in prompts]


def values(name: str, **options: Any) -> list[float]:
    return [score.value for score in create_reward(f"{__name__}:{name}", options, "cpu").score(PICTURES, PROMPTS)]


def test_a_plain_function_is_a_reward() -> None:
    assert values("brightness") == pytest.approx([0.0, 0.4, 1.0])


def test_options_are_keyword_arguments_of_a_function_and_of_a_class() -> None:
    assert values("brightness", scale=2.0) == pytest.approx([0.0, 0.8, 2.0])
    assert values("Darkness", most=2.0) == pytest.approx([2.0, 1.6, 1.0])


@pytest.mark.parametrize("name", ["brightness", "Darkness"])
def test_an_option_that_it_does_not_take_is_refused_before_a_picture_is_scored(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"'.*:{name}' does not take options .*colour"):
        create_reward(f"{__name__}:{name}", {"colour": 1}, "cpu")


def test_a_function_that_returns_no_numbers_fails_instead_of_scoring() -> None:
    with pytest.raises(ValueError, match="could not convert string to float: 'a wall'"):
        values("words")


def test_an_unknown_name_lists_the_rewards_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'hsp' is not a reward; use one of .*hps.* or module:Class or module:funct"):
        reward_path("hsp")


def test_a_module_or_name_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot import no_such_module:Reward"):
        create_reward("no_such_module:Reward", {}, "cpu")
    with pytest.raises(ConfigError, match=r"cannot import .*:NoSuchReward"):
        create_reward(f"{__name__}:NoSuchReward", {}, "cpu")


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_every_registered_reward_is_there(name: str) -> None:
    module, _, attribute = REGISTERED[name].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute).score)
