"""What a config would run: the resolved config, its data, its rewards and its placement. Starts nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec

from cluster.planning.known_models import shape_of
from cluster.session.gpu_plan import DEFAULT_CARD, card_of, check_memory, describe_gpu_plan
from cluster.session.placement import plan_placement
from cluster.session.ray_address import check_ray_address
from configs.errors import ConfigError, DataError, ModelError
from configs.load import dump_config
from configs.local.environment import with_secrets
from configs.local.masking import mask_text
from configs.schema import TINY_JANUS, ModelConfig, RewardConfig, RunConfig
from rewards.coverage import check_reward, describe_coverage
from rewards.registry import reward_path
from rollout.prompts import PromptSet, load_prompts
from rollout.prompts.source import summarize_skipped

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class DryRun:
    """What `--dry-run` says."""

    text: str
    faults: tuple[str, ...]
    """Data that a run would need and that cannot be read here: a plan needs none."""


def describe_run(config: RunConfig, gpu: str | None = None) -> DryRun:
    """What would be run. gpu: name of the card that the plan is for, see `cluster.planning.cards`; None takes an H100,
    and refuses nothing for its memory.

    Raises what the run itself would raise at its start: ConfigError for an unknown reward or one that does not take
    its options, ModelError for a missing model folder, PlacementError for an impossible plan, or for one that does not
    fit the card that was named. Data that cannot be read are faults of the result.
    """
    check_before_start(config)
    faults: list[str] = []
    sections = (
        ("config", dump_config(config).rstrip()),
        ("prompts", "\n".join(_describe_data(config, faults))),
        ("rewards", "\n".join(_describe_reward(reward) for reward in config.rewards)),
        ("placement", plan_placement(config).describe()),
        ("GPUs", _describe_gpus(config, gpu)),
        ("advice", "\n".join(config.advice)),
    )
    return DryRun("\n\n".join(f"── {title} ──\n{text}" for title, text in sections if text), tuple(faults))


def _describe_gpus(config: RunConfig, gpu: str | None) -> str:
    if plan_placement(config).num_gpus == 0:
        return ""
    shape = shape_of(config.model.path)
    if shape is None:
        return f"not planned: the config.json of {config.model.path} is not at hand; name a local folder"
    card = card_of(gpu or DEFAULT_CARD)
    if gpu is not None:
        check_memory(config, shape, card)
    return describe_gpu_plan(config, shape, card)


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


def _describe_data(config: RunConfig, faults: list[str]) -> Iterator[str]:
    data = config.data
    for title, source in (("train", data.train), *((f"evaluation {name}", at) for name, at in data.evaluation.items())):
        try:
            prompts = load_prompts(source, data.max_bad_lines)
        except DataError as error:
            faults.append(f"{title}: {error}")
            yield f"{title} ({source}): cannot be read here"
            continue
        if title == "train":
            yield from _describe_prompts(f"{title} ({source})", prompts)
            yield from (f"  {line}" for line in describe_coverage(config.rewards, prompts.prompts))
        else:
            num_scored = min(len(prompts.prompts), data.num_evaluation_prompts)
            yield from _describe_prompts(f"{title} ({source}), scoring {num_scored}", prompts)


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
