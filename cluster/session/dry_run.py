"""What a config would run: the resolved config, its data, its rewards and its placement. Starts nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import fsspec

from cluster.session.placement import plan_placement
from cluster.session.ray_address import check_ray_address
from configs.errors import ConfigError, ModelError
from configs.load import dump_config
from configs.local.environment import with_secrets
from configs.local.masking import mask_text
from configs.schema import TINY_JANUS, ModelConfig, RewardConfig, RunConfig
from rewards.coverage import check_reward, describe_coverage
from rewards.registry import reward_path
from rollout.prompts import PromptSet, load_prompts
from rollout.prompts.source import summarize_skipped

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def describe_run(config: RunConfig) -> str:
    """The text of `--dry-run`.

    Raises what the run itself would raise at its start: ConfigError for an unknown reward or one that does not take
    its options, ModelError for a missing model folder, DataError for data that cannot be used, PlacementError for an
    impossible plan.
    """
    check_before_start(config)
    rewards = [_describe_reward(reward) for reward in config.rewards]
    sections = (
        ("config", dump_config(config).rstrip()),
        ("prompts", "\n".join(_describe_data(config))),
        ("rewards", "\n".join(rewards)),
        ("placement", plan_placement(config).describe()),
    )
    return "\n\n".join(f"── {title} ──\n{text}" for title, text in sections)


def check_before_start(config: RunConfig) -> None:
    """What can be known before the first process starts, hours before it would end the run.

    Raises ConfigError, ModelError, and PlacementError for an address that cannot be one of Ray's.
    """
    check_model_exists(config.model)
    resolved = with_secrets(config)
    check_ray_address(config.cluster.address)
    if resolved.checkpoint.url is not None:
        _check_url(resolved.checkpoint.url)


def _check_url(url: str) -> None:
    """Refuse a checkpoint.url whose file system is unknown, or not installed."""
    try:
        fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"checkpoint.url '{mask_text(url)}': {error}; see the remedy in it") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"checkpoint.url '{mask_text(url)}': {error}; use an address that fsspec knows: s3://, gs://, file://, …"
        ) from error


def check_model_exists(model: ModelConfig) -> None:
    """Refuse a path that is no folder of a model. A hub id is not looked up.

    Raises ModelError.
    """
    path = Path(model.path).expanduser()
    if model.path == TINY_JANUS:
        return
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"model.path '{model.path}' holds no config.json; name a folder that save_pretrained wrote, "
                "such as a run's checkpoints/step_000100/model"
            )
        return
    if not _is_hub_id(model.path):
        raise ModelError(
            f"model.path '{model.path}' is no folder; mend the path, or name a hub id such as "
            "deepseek-community/Janus-Pro-1B"
        )


def _is_hub_id(path: str) -> bool:
    """`NAME` or `OWNER/NAME`; a relative path whose first folder is here is taken as a path."""
    owner, slash, _ = path.partition("/")
    return bool(_HUB_ID.fullmatch(path)) and not path.startswith(".") and not (slash and Path(owner).is_dir())


def _describe_data(config: RunConfig) -> Iterator[str]:
    data = config.data
    train = load_prompts(data.train, data.max_bad_lines)
    yield from _describe_prompts(f"train ({data.train})", train)
    yield from (f"  {line}" for line in describe_coverage(config.rewards, train.prompts))
    for name, source in data.evaluation.items():
        prompts = load_prompts(source, data.max_bad_lines)
        num_scored = min(len(prompts.prompts), data.num_evaluation_prompts)
        yield from _describe_prompts(f"evaluation {name} ({source}), scoring {num_scored}", prompts)


def _describe_reward(reward: RewardConfig) -> str:
    """`git_vqa: rewards.alignment.git_vqa:GitVqaReward, weight 1`, and what sets it apart."""
    unknown = check_reward(reward)
    remarks = [f"{reward.name}: {reward_path(reward.implementation)}", f"weight {reward.weight:g}"]
    if reward.evaluation_only:
        remarks.append("for evaluations only")
    elif not reward.trains:
        remarks.append("watched only")
    elif reward.phase != "both":
        remarks.append(f"trains the tokens of the {'plan' if reward.phase == 'cot' else 'picture'} only")
    return ", ".join(remarks) + (f"; {unknown}" if unknown else "")


def _describe_prompts(title: str, prompts: PromptSet) -> Iterator[str]:
    yield f"{title}: {len(prompts.prompts)} prompts, {len(prompts.skipped)} skipped"
    for task_type, num in prompts.num_by_task_type.items():
        yield f"  {task_type or '(no task_type)'}: {num}"
    if prompts.skipped:
        yield summarize_skipped(prompts.skipped)
