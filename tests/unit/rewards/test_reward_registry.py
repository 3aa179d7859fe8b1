"""rewards/registry.py: what a config may name, and a user's own class or function."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import pickle
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from configs.errors import ConfigError, RewardError
from rewards.calling import WrongAnswerError
from rewards.calling.parts import plain_parts
from rewards.registry import MOVED, REGISTERED, applicability, check_options, create_reward, reward_path
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


def values(name: str, **options: Any) -> list[Any]:
    answers = create_reward(f"{__name__}:{name}", options, "cpu").score(PICTURES, PROMPTS)
    return [answer.value if isinstance(answer, Score) else answer for answer in answers]


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
    with pytest.raises(WrongAnswerError, match=r"a score must be a number, .* not str 'a wall'"):
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


class Callable:
    def __call__(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[float]:
        return [0.25] * len(prompts)


def _level(pictures: UInt8Array, prompts: Sequence[Prompt], target: float) -> list[float]:
    return [target] * len(prompts)


async def asynchronous(pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[float]:
    await asyncio.sleep(0)
    return [0.5] * len(prompts)


class AsyncMethod:
    loops: ClassVar[set[int]] = set()

    async def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        self.loops.add(id(asyncio.get_running_loop()))
        return [Score(0.5)] * len(prompts)


class ForStars:
    @staticmethod
    def applies_to(prompt: Prompt, options: Mapping[str, Any]) -> bool:
        return options.get("word", "star") in prompt.text

    def __init__(self, word: str = "star") -> None:
        pass

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[float]:
        assert all("star" in prompt.text for prompt in prompts)
        return list(range(len(prompts)))


class Broken:
    def __init__(self, device: str) -> None:
        len(5)  # type: ignore[arg-type]

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[float]:
        raise NotImplementedError


class NoReward:
    pass


partial = functools.partial(_level, target=0.75)
instance = Callable()
RETURNS: dict[str, Any] = {
    "tensor": lambda: torch.tensor([0.0, 0.5, 1.0], requires_grad=True),
    "column": lambda: torch.tensor([[0.0], [0.5], [1.0]]),
    "half": lambda: np.array([0.0, 0.5, 1.0], np.float16),
    "generator": lambda: (value / 2 for value in range(3)),
    "booleans": lambda: [False, 0.5, True],
    "scores": lambda: [Score(0), Score(np.float32(0.5)), Score(torch.tensor(1.0))],  # type: ignore[arg-type]
    "mixed": lambda: (None, Score(0.5), 1),
    "failing": lambda: [RewardError("unreadable"), 0.5, float("inf")],
}
WRONG: dict[str, Any] = {
    "mapping": lambda: {0: 0.5, 1: 0.5, 2: 0.5},
    "scalar": lambda: 0.5,
    "nothing": lambda: None,
    "text": lambda: "0.5",
    "short": lambda: [0.5],
    "matrix": lambda: np.zeros((3, 2)),
    "array of one": lambda: np.zeros(1),
    "pairs": lambda: [(0.5, "why")] * 3,
}


def returns(pictures: UInt8Array, prompts: Sequence[Prompt], what: str) -> Any:
    return (RETURNS | WRONG)[what]()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("partial", 0.75), ("instance", 0.25), ("Callable", 0.25), ("asynchronous", 0.5), ("AsyncMethod", 0.5)],
)
def test_whatever_can_be_called_is_a_reward(name: str, expected: float) -> None:
    assert values(name) == [expected] * 3


def test_one_event_loop_serves_an_async_reward_for_its_life() -> None:
    reward = create_reward(f"{__name__}:AsyncMethod", {}, "cpu")
    AsyncMethod.loops.clear()
    for _ in range(3):
        reward.score(PICTURES, PROMPTS)
    reward.close()
    assert len(AsyncMethod.loops) == 1


@pytest.mark.parametrize("what", sorted(RETURNS))
def test_scores_may_come_in_any_sequence(what: str) -> None:
    answers = values("returns", what=what)
    if what == "mixed":
        assert answers == [None, 0.5, 1]
    elif what == "failing":
        assert [str(answers[0]), answers[1], str(answers[2])] == [
            "unreadable",
            0.5,
            "a score must be a finite number, not inf",
        ]
    else:
        assert answers == [0.0, 0.5, 1.0]
        assert all(type(answer) is float for answer in answers)


@pytest.mark.parametrize("what", sorted(WRONG))
def test_what_is_not_one_score_a_picture_is_refused(what: str) -> None:
    with pytest.raises(WrongAnswerError):
        values("returns", what=what)


def test_a_reward_is_shown_only_what_it_applies_to() -> None:
    reward = create_reward(f"{__name__}:ForStars", {}, "cpu")
    prompts = [Prompt("0", "a star"), Prompt("1", "a wall"), Prompt("2", "two stars")]
    assert reward.score(PICTURES, prompts) == [Score(0.0), Score(None), Score(1.0)]
    assert reward.score(PICTURES[:1], prompts[1:2]) == [Score(None)]
    applies = applicability(f"{__name__}:ForStars", {"word": "wall"})
    assert applies is not None
    assert [applies(prompt) for prompt in prompts] == [False, True, False]
    assert applicability(f"{__name__}:brightness", {}) is None


def test_an_error_of_the_rewards_own_constructor_is_not_blamed_on_its_options() -> None:
    with pytest.raises(RewardError, match=r"cannot be made: TypeError: .*no len\(\) \(test_reward_registry.py:\d+, in"):
        create_reward(f"{__name__}:Broken", {}, "cpu")


def test_a_class_that_is_no_reward_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no method score, score_group or __call__"):
        create_reward(f"{__name__}:NoReward", {}, "cpu")
    with pytest.raises(ConfigError, match="a reward is a class, a function, or another callable"):
        create_reward(f"{__name__}:PROMPTS", {}, "cpu")


def test_options_are_checked_without_making_the_reward() -> None:
    check_options(f"{__name__}:Broken", {})
    with pytest.raises(ConfigError, match=r"'shapes' does not take options \{'colour': 1\}: .*; it has none"):
        check_options("shapes", {"colour": 1})
    with pytest.raises(ConfigError, match=r"'vlm_judge' does not take options \{\}: missing a .* argument: 'url'"):
        check_options("vlm_judge", {})
    with pytest.raises(ConfigError, match="missing a required argument: 'target'; it has target"):
        check_options(f"{__name__}:_level", {})


def test_parts_become_plain_and_small() -> None:
    plain = plain_parts(
        {
            "lock": threading.Lock(),
            "picture": np.zeros((384, 384, 3), np.uint8),
            "boxes": torch.tensor([[0.0, 1.0]]),
            "level": np.float32(0.5),
            3: (1, None, True, {"a": {2}}),
            "reply": "x" * 20_000,
            "nan": float("nan"),
        }
    )
    assert plain["lock"] == "<lock>"
    assert plain["picture"] == "<ndarray of more than 1000 items, left out>"
    assert (plain["boxes"], plain["level"], plain["3"]) == ([[0.0, 1.0]], 0.5, [1, None, True, {"a": [2]}])
    assert (len(plain["reply"]), plain["nan"]) == (10_003, "nan")
    assert pickle.loads(pickle.dumps(plain)) == json.loads(json.dumps(plain)) == plain
    endless: list[Any] = []
    endless.append(endless)
    assert "list" in json.dumps(plain_parts({"endless": endless}))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("rewards.hps:HPSReward", "rewards.preference.hps:HPSReward"),
        ("rewards.shapes_neatness:NeatnessReward", "rewards.shapes.neatness:NeatnessReward"),
        ("rewards.vlm_judge:UnifiedReward", "rewards.judge.unified_reward:UnifiedReward"),
        ("mine.rewards:Taste", "mine.rewards:Taste"),
    ],
)
def test_a_path_of_an_earlier_run_finds_its_reward_where_it_is_now(before: str, now: str) -> None:
    assert reward_path(before) == now


@pytest.mark.parametrize("module", sorted(set(MOVED.values())))
def test_what_has_moved_is_there(module: str) -> None:
    assert importlib.util.find_spec(module) is not None
