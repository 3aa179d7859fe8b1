"""The cache of warm-started models: a folder is named by a hash of everything that its weights depend on.

A changed config field, example file, picture or base model gives another folder; with the same inputs the model is
reused. Settings that only affect speed (ranks, micro-batches, threads) are not part of the hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from configs.errors import ConfigError, DataError
from configs.model_sections import TINY_JANUS, TINY_JANUS_FOLDER
from configs.schema import RunConfig
from learner.warm_start.data import SHAPES, load_examples

RECIPE_VERSION = 5
"""Raise it with every change of code that changes the weights a warm start ends in."""
PICTURES_VERSION = 2
"""Raise it with every change of what is read from a picture file."""
_KEY_CHARACTERS = 24


def warm_start_folder(config: RunConfig) -> Path:
    """The folder under run.cache_dir that holds, or will hold, this config's warm-started model.

    Raises ConfigError without a warm_start section, DataError when the example file cannot be read.
    """
    if config.warm_start is None:
        raise ConfigError("warm_start: the config has no such section; add one")
    name = Path(config.model.path).name or "model"
    return Path(config.run.cache_dir).expanduser() / "warm_start" / f"{name}-{_key(config)}"


def _key(config: RunConfig) -> str:
    assert config.warm_start is not None
    digest, rollout = hashlib.blake2b(), config.rollout
    decisive = {
        "recipe": RECIPE_VERSION,
        "model": config.model.model_dump(),
        "warm_start": config.warm_start.model_dump(),
        "prompts": [rollout.system_prompt, rollout.instruction, *filter(None, (rollout.roles, rollout.image_prompt))],
        "limits": [rollout.max_prompt_tokens, rollout.max_cot_tokens],
    }
    digest.update(json.dumps(decisive, sort_keys=True).encode())
    base = TINY_JANUS_FOLDER if config.model.path == TINY_JANUS else Path(config.model.path).expanduser()
    if config.model.tiny is None and base.is_dir():
        _add_stats(digest, sorted(path for path in base.iterdir() if path.is_file()))
    if config.warm_start.examples != SHAPES:
        examples = Path(config.warm_start.examples).expanduser()
        digest.update(f"pictures {PICTURES_VERSION}\0".encode())
        try:
            digest.update(examples.read_bytes())
        except OSError as error:
            raise DataError(f"{examples}: cannot read the examples: {error.strerror or error}") from error
        pictures = (example.picture for example in load_examples(config.warm_start, image_size=1).examples)
        _add_stats(digest, (picture for picture in pictures if isinstance(picture, Path)))
    return digest.hexdigest()[:_KEY_CHARACTERS]


def _add_stats(digest: hashlib.blake2b, paths: Iterable[Path]) -> None:
    """Names, sizes and times of files: enough to see that one was replaced, without reading gigabytes."""
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
