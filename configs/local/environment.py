"""What a config takes from the launcher's environment: secrets, so that none is in a file or on a command line.

    registry.redis_url                 BICOT_REDIS_URL
    `${NAME}` in the fields below      NAME
    X of any env_vars                  X, where a run goes on and its own value was not written down

    registry.redis_url, checkpoint.url, rewards.*.options, rewards.*.runtime_env, learner.env_vars, rollout.env_vars

`config.yaml` keeps the reference, the run gets the value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from configs.errors import ConfigError
from configs.local.masking import MASK
from configs.schema import RewardConfig, RunConfig

REDIS_URL_VARIABLE: Final = "BICOT_REDIS_URL"
"""Takes the place of registry.redis_url, so that its password need not be in a file or on a command line."""

_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def with_environment(config: RunConfig) -> RunConfig:
    """The config with the address of Redis from the environment, where there is one."""
    url = os.environ.get(REDIS_URL_VARIABLE)
    if not url:
        return config
    return config.model_copy(update={"registry": config.registry.model_copy(update={"redis_url": url})})


def with_secrets(config: RunConfig) -> RunConfig:
    """The config with the values of all `${NAME}`: to run by, not to show.

    Raises ConfigError, naming field and variable, for one that is not set.
    """
    registry, checkpoint = config.registry, config.checkpoint
    return config.model_copy(
        update={
            "registry": registry.model_copy(
                update={"redis_url": _resolved(registry.redis_url, "registry.redis_url")},
            ),
            "checkpoint": checkpoint.model_copy(update={"url": _resolved(checkpoint.url, "checkpoint.url")}),
            "learner": config.learner.model_copy(
                update={"env_vars": _resolved(config.learner.env_vars, "learner.env_vars")}
            ),
            "rollout": config.rollout.model_copy(
                update={"env_vars": _resolved(config.rollout.env_vars, "rollout.env_vars")}
            ),
            "rewards": tuple(_reward_with_secrets(reward) for reward in config.rewards),
        }
    )


def with_masked_variables(config: RunConfig) -> RunConfig:
    """The config with those variables of its actors' environments that were masked taken from our own environment."""

    def filled(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: os.environ.get(name, text) if MASK in text else text for name, text in variables.items()}

    def of_reward(reward: RewardConfig) -> RewardConfig:
        if "env_vars" not in reward.runtime_env:
            return reward
        runtime_env = {**reward.runtime_env, "env_vars": filled(reward.runtime_env["env_vars"])}
        return reward.model_copy(update={"runtime_env": runtime_env})

    return config.model_copy(
        update={
            "learner": config.learner.model_copy(update={"env_vars": filled(config.learner.env_vars)}),
            "rollout": config.rollout.model_copy(update={"env_vars": filled(config.rollout.env_vars)}),
            "rewards": tuple(map(of_reward, config.rewards)),
        }
    )


def _reward_with_secrets(reward: RewardConfig) -> RewardConfig:
    place = f"rewards.{reward.name}"
    return reward.model_copy(
        update={
            "options": _resolved(reward.options, f"{place}.options"),
            "runtime_env": _resolved(reward.runtime_env, f"{place}.runtime_env"),
        }
    )


def _resolved(node: Any, place: str) -> Any:
    if isinstance(node, Mapping):
        return {key: _resolved(value, f"{place}.{key}") for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_resolved(value, place) for value in node]
    return _REFERENCE.sub(lambda match: _variable(match[1], place), node) if isinstance(node, str) else node


def _variable(name: str, place: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise ConfigError(
            f"{place}: the environment variable {name} is not set; export it where the launcher starts "
            f"(in a Ray job: `env_vars` of the job's runtime environment)"
        )
    return value
