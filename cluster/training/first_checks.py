"""What can be refused before anything is started, by `--dry-run` as by the run itself.

A mistake found here costs seconds; found by the actor that stumbles over it, it costs a warm start.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from cluster.session.dry_run import check_before_start
from cluster.state.run_directory import resolve_root
from cluster.training.run_benchmarks import check_benchmarks
from configs.errors import ConfigError
from configs.schema import RewardConfig, RunConfig
from rewards.coverage import check_reward


def check_first(config: RunConfig) -> None:
    """Look at the model folder, the rewards' code and options, and the folders that will be written to.

    Raises ConfigError, DataError or ModelError, naming the field. A hub id is not looked up, and what only other
    machines have is not looked at.
    """
    for reward in config.rewards:
        _check_reward(reward)
    check_before_start(config)
    check_benchmarks(config)
    _check_model_folder(config)
    _check_can_write(resolve_root(config.run.dir)[0], "run.dir")
    if config.warm_start is not None and not _is_on_a_cluster(config):
        from learner.warm_start import warm_start_folder

        if not (folder := warm_start_folder(config)).exists():
            _check_can_write(folder, "run.cache_dir")


def _check_reward(reward: RewardConfig) -> None:
    """Import it and hold its options against its parameters, as far as that can be done here."""
    if (current := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(current)  # as Ray does for its workers
    check_reward(reward)


def _check_model_folder(config: RunConfig) -> None:
    """Read the small files of a local model, and the headers of its weights."""
    folder = Path(config.model.path).expanduser()
    if not folder.is_dir():
        return
    from rollout.prompts import Conversation
    from rollout.weights.manifest import WeightManifest

    conversation = Conversation.of_run(str(folder), config.rollout)
    WeightManifest.from_folder(conversation.checkpoint.folder)


def _is_on_a_cluster(config: RunConfig) -> bool:
    """Whether the warm start may be made on another machine, with folders of its own."""
    return (
        config.cluster.address is not None or "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    )


def _check_can_write(folder: Path, field: str) -> None:
    """Raises ConfigError unless a folder can be written to, or made. Leaves nothing behind."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"{field} '{folder}' cannot be made, since {there} is no folder; name another")
    try:
        with tempfile.TemporaryFile(dir=there):  # os.access is wrong for root, and on some network file systems
            pass
    except OSError as error:
        raise ConfigError(
            f"{field} '{folder}' cannot be made, since {there} cannot be written to: {error.strerror or error}; "
            "name a folder in which you may write"
        ) from error
