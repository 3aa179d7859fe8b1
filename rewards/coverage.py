"""What is known of the rewards before anything is started: their options, and which prompts they apply to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from configs.errors import ConfigError
from configs.schema import RewardConfig
from rewards.calling.loaded import Applies
from rewards.registry import applicability, check_options, reward_path
from rollout.records import Prompt

PACKAGES = ("pip", "uv", "conda", "py_modules", "py_executable", "working_dir", "image_uri")
"""Of a runtime_env, by which a reward may be importable in its replicas and not here."""


def check_reward(reward: RewardConfig) -> str | None:
    """Raise ConfigError unless the reward is there and takes its options; loads no model.

    Returns why that cannot be told here, for a reward with packages of its own.
    """
    reward_path(reward.implementation)
    try:
        check_options(reward.implementation, reward.options)
    except ConfigError as error:
        if isinstance(error.__cause__, ImportError) and _has_packages(reward):
            return f"its options cannot be checked here: {error.__cause__}"
        raise
    return None


def reason_against(rewards: Sequence[RewardConfig]) -> Callable[[Prompt], str | None]:
    """For `PromptSet.without`: why a prompt teaches nothing, None where it does."""
    trained = [reward for reward in rewards if reward.trains]
    rules = [_applies(reward) for reward in trained]
    known = [rule for rule in rules if rule is not None]
    if len(known) < len(rules):
        return lambda prompt: None  # one of them says nothing, and so may apply to every prompt
    names = ", ".join(reward.name for reward in trained)
    return lambda prompt: None if any(rule(prompt) for rule in known) else f"none of the rewards {names} applies to it"


def describe_coverage(rewards: Sequence[RewardConfig], prompts: Sequence[Prompt]) -> Iterator[str]:
    """`git_vqa applies to 3,856 of 7,223 prompts` for each reward that does not apply to all."""
    for reward in rewards:
        rule = _applies(reward)
        num = len(prompts) if rule is None else sum(map(rule, prompts))
        if num < len(prompts):
            yield f"{reward.name} applies to {num:,} of {len(prompts):,} prompts"
    reason = reason_against(rewards)
    if num_left_out := sum(reason(prompt) is not None for prompt in prompts):
        yield f"no reward applies to {num_left_out:,} of {len(prompts):,} prompts, which are left out"


def _applies(reward: RewardConfig) -> Applies | None:
    """None where nothing is known."""
    try:
        return applicability(reward.implementation, reward.options)
    except ConfigError:
        if _has_packages(reward):
            return None
        raise


def _has_packages(reward: RewardConfig) -> bool:
    return any(key in reward.runtime_env for key in PACKAGES)
