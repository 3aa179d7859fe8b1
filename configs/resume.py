"""The config of a resumed run: the one in its run directory, with overrides of the fields that may change.

    RUN/config.yaml ─► --set ─► only fields of MAY_CHANGE differ? ─► secrets given again? ─► RunConfig

Fields that decide where the run computes, how fast, for how long, and what it keeps may change. Fields that decide what
it computes may not: it would be another run under the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from configs.errors import ConfigError
from configs.load import load_config
from configs.local.environment import REDIS_URL_VARIABLE, with_environment, with_masked_variables
from configs.local.masking import is_masked, mask_text
from configs.schema import RunConfig

MAY_CHANGE: Final = (
    *("run.steps", "run.*_timeout_s", "run.max_restarts", "run.cache_dir"),
    *("learner.num_ranks", "learner.*_per_rank", "learner.zero_stage", "learner.micro_batch_size"),
    *("learner.gradient_checkpointing", "learner.logprob_chunk_mb", "learner.reference"),
    *("rollout.num_workers*", "rollout.*_per_worker", "rollout.tensor_parallel_size", "rollout.max_num_seqs"),
    *("rollout.decode_batch_size", "rollout.gpu_memory_utilization", "rollout.kv_cache_gib", "rollout.enforce_eager"),
    *("rollout.colocate", "rollout.max_attempts", "rollout.*_timeout_s", "rollout.env_vars*", "learner.env_vars*"),
    *("rollout.node_labels*", "learner.node_labels*", "rewards.*.node_labels*"),
    *("rewards.*.replicas*", "rewards.*_per_replica", "rewards.*.batch_size", "rewards.*.max_wait_ms"),
    *("rewards.*.timeout_s", "rewards.*.retries"),
    *("weight_sync.*", "queue.*", "registry.*", "checkpoint.*", "samples.*", "cluster.*", "watching.*"),
)
"""Patterns of fields, as `fnmatch` has them."""


def load_resumed_config(config_path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a resumed run.

    Raises ConfigError for an override of a field that may not change, and for a secret that was masked
    when the config was written and is not given again.
    """
    config = with_masked_variables(with_environment(load_config(config_path, overrides)))
    check_may_go_on(config_path, config)
    return config


def check_may_go_on(config_path: Path, config: RunConfig) -> None:
    """Whether the run that began with the config at `config_path` may go on with `config`.

    Raises ConfigError as `load_resumed_config` does.
    """
    before = load_config(config_path)
    was, now = dict(_leaves(before.model_dump(mode="json"))), dict(_leaves(config.model_dump(mode="json")))
    for field in sorted(was.keys() | now.keys()):
        if was.get(field) != now.get(field) and not _may_change(field, was.get(field)):
            raise ConfigError(
                f"{field}: a run that goes on must keep it at {mask_text(repr(was.get(field)))}, not "
                f"{mask_text(repr(now.get(field)))}; "
                "leave it as it was, or start a new run (model.path may be a checkpoint's model folder)"
            )
    for field, value in now.items():
        if is_masked(value):
            raise ConfigError(
                f"{config_path}: {field} is a secret and was not written down; give it again: {_ways(field)}"
            )


def _ways(field: str) -> str:
    """How to give a secret: by the environment, which neither `ps` nor a job's metadata shows."""
    if field == "registry.redis_url":
        return f"in the environment variable {REDIS_URL_VARIABLE}"
    _, is_variable, name = field.partition("env_vars.")
    if is_variable:
        return f"in the environment variable {name}"
    return f"--set '{field}=${{NAME}}' with the secret in the environment variable NAME"


def _may_change(field: str, was: Any) -> bool:
    return is_masked(was) or any(fnmatchcase(field, pattern) for pattern in MAY_CHANGE)


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value with its dotted path; rewards by their names."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and all(isinstance(entry, Mapping) and "name" in entry for entry in node) and node:
        for entry in node:
            yield from _leaves(entry, f"{path}.{entry['name']}")
    else:
        yield path, node
