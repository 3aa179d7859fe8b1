"""Paths of a config: with the variables in them, and absolute, so that a run can go on from any folder.

$NAME and ${NAME}   are replaced; one that is not set is refused
a relative path     is relative to where the launcher starts, and is written down absolute
~                   stays: on every node it is that node's home
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.schema import TINY_JANUS, RunConfig


def with_paths(config: RunConfig, base: Path | None = None) -> RunConfig:
    """The config with its paths so. base: what relative ones are relative to; None leaves them as they are."""
    if base is None:
        return config

    def absolute(path: str) -> str:
        return path if path.startswith(("~", os.sep)) else str(base / path)

    def if_there(path: str) -> str:
        """A hub id stays what it is."""
        return absolute(path) if (base / path).exists() else path

    data, warm = config.data, config.warm_start
    update: dict[str, Any] = {
        "run": config.run.model_copy(update={"cache_dir": absolute(config.run.cache_dir)}),
        "data": data.model_copy(
            update={
                "train": _source(data.train, absolute),
                "evaluation": {name: _source(source, absolute) for name, source in data.evaluation.items()},
                "benchmarks": {
                    name: section.model_copy(
                        update={
                            "data": section.data and absolute(section.data),
                            "scorer": {
                                key: if_there(value) if _is_path(value) else value
                                for key, value in section.scorer.items()
                            },
                        }
                    )
                    for name, section in data.benchmarks.items()
                },
            }
        ),
        "rewards": tuple(
            reward.model_copy(
                update={
                    "options": {
                        name: if_there(value) if _is_path(value) else value for name, value in reward.options.items()
                    }
                }
            )
            for reward in config.rewards
        ),
    }
    if config.model.path != TINY_JANUS:
        update["model"] = config.model.model_copy(update={"path": if_there(config.model.path)})
    if warm is not None and warm.examples != "shapes":
        update["warm_start"] = warm.model_copy(update={"examples": absolute(warm.examples)})
    return config.model_copy(update=update)


def _source(source: str, absolute: Callable[[str], str]) -> str:
    return source if source.startswith("shapes:") else absolute(source)


def _is_path(value: Any) -> bool:
    """What may be one: a short text in one line that is no address and no reference to a secret."""
    return (
        isinstance(value, str)
        and 0 < len(value) < 512
        and "\n" not in value
        and "://" not in value
        and "$" not in value
    )
