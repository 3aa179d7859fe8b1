"""Which rewards a folder is scored with, and how they are set up."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from configs.errors import ConfigError
from configs.load import load_rewards
from configs.schema import RewardConfig
from configs.yaml_text import parse_yaml_value
from rewards.registry import check_options, reward_path

TIMEOUT_S: Final = 3600.0
"""A batch may take this long: a large model on CPU is slow, and nobody waits for the others here."""


def add_reward_arguments(parser: ArgumentParser) -> None:
    """Which rewards, and how: `choose_rewards` takes what they give; see `check_reward_arguments`."""
    parser.add_argument("--rewards", metavar="NAMES", help="with commas between; default: all of --config")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a run's config, or its section rewards: options and batch sizes"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME.OPTION=VALUE",
        help="an option of a reward, such as hps.model=DIR, or a field of rewards[], such as hps.batch_size=8; "
        "repeatable",
    )


def check_reward_arguments(parser: ArgumentParser, arguments: Namespace) -> None:
    """Exits with 2 when no reward is named."""
    if not arguments.rewards and not arguments.config:
        parser.error("give --rewards, --config, or both")


def choose_rewards(
    names: str | None, config: Path | None, overrides: Sequence[str] = (), device: str | None = None
) -> list[RewardConfig]:
    """The rewards to run, in order, each once, with their options.

    names: with commas between, None for all of the config's; config: a run's config, or one of rewards only;
    overrides: `NAME.OPTION=VALUE`, or `NAME.FIELD=VALUE` of rewards[] (`kind`, `batch_size`); device: of all.
    Raises ConfigError for an unknown reward or option, or a wrong config.
    """
    configured = {reward.name: reward for reward in (load_rewards(config) if config else ())}
    chosen = [name.strip() for name in (names or ",".join(configured)).split(",")]
    trees = {
        name: configured[name].model_dump() if name in configured else {"name": name} for name in dict.fromkeys(chosen)
    }
    for override in overrides:
        _apply(trees, override)
    rewards = [_checked(name, tree) for name, tree in trees.items()]
    settings: dict[str, Any] = {"timeout_s": TIMEOUT_S, "retries": 0, "cache": False}
    if device:
        settings["gpus_per_replica"] = float(device == "cuda")
    return [reward.model_copy(update=settings) for reward in rewards]


def _apply(trees: dict[str, dict[str, Any]], override: str) -> None:
    dotted, separator, text = override.partition("=")
    dotted = dotted.strip()
    if not any(dotted.startswith(f"{name}.") for name in trees):
        dotted = dotted.removeprefix("rewards.")  # as the launcher has it
    # Names of a user's own rewards have dots in them: the longest one that fits is meant.
    name = max((name for name in trees if dotted.startswith(f"{name}.")), key=len, default=None)
    if not separator or name is None:
        raise ConfigError(
            f"--set {override}: expected NAME.OPTION=VALUE with a NAME of {', '.join(trees)}, such as hps.model=DIR"
        )
    value, field = parse_yaml_value(text, f"--set {override}"), dotted[len(name) + 1 :]
    if field in RewardConfig.model_fields and field not in ("name", "options"):
        trees[name][field] = value
    else:
        trees[name].setdefault("options", {})[field.removeprefix("options.")] = value


def _checked(name: str, tree: dict[str, Any]) -> RewardConfig:
    try:
        reward = RewardConfig.model_validate(tree)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(f"reward '{name}': {faults}") from None
    reward_path(reward.implementation)
    check_options(reward.implementation, reward.options)
    return reward
