"""What a rehearsal has to make before it can begin: a policy and rewards with random weights, and prompts.

RunConfig, folder ─► with_materials ─► the config with paths into the folder
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from cluster.planning.known_models import KNOWN
from cluster.planning.model_shape import ModelShape
from cluster.rehearsal.cuts import Cutter
from configs.errors import ConfigError, DataError, ModelError
from configs.schema import TINY_JANUS, RunConfig
from rewards.rehearsal import has_random_weights, needs_weights, with_random_weights
from rollout.prompts import load_prompts

NUM_READ: Final = 200
"""Prompts whose words the made-up tokenizers know."""
STAND_IN: Final = "shapes:train:40"
"""Prompts made by rule, with nouns, attributes, places and counts: every reward that bicot ships can read them."""


def shape_with_layers(config: RunConfig, layers: int) -> ModelShape:
    """Of the model that will be made. Raises ModelError when its config.json is not at hand."""
    from learner.warm_start.random_janus import with_layers

    return ModelShape.of(with_layers(_model_config(config), layers))


def is_tiny(config: RunConfig) -> bool:
    """Whether the policy needs no stand-in: it comes with the project, or is built for a warm start."""
    return config.model.path == TINY_JANUS


def cut_data(cutter: Cutter, config: RunConfig) -> list[str]:
    """Replace prompts that cannot be read here by made-up ones; returns texts that the policy will read."""
    data = config.data
    source = data.train
    if not _can_read(source, data.max_bad_lines):
        source = STAND_IN
        cutter.set("data.train", source, "cannot be read here")
    texts = [prompt.text for prompt in load_prompts(source, data.max_bad_lines).prompts[:NUM_READ]]
    readable = {name: source for name, source in data.evaluation.items() if _can_read(source, data.max_bad_lines)}
    if len(readable) < len(data.evaluation):
        missing = ", ".join(sorted(data.evaluation.keys() - readable.keys()))
        cutter.set("data.evaluation", readable, "cannot be read here", f"without {missing}")
        if not readable:
            cutter.set("data.evaluate_every_steps", None, "there are no evaluation prompts")
    return texts


def cut_rewards(cutter: Cutter, config: RunConfig) -> None:
    """Leave out rewards whose weights would have to be downloaded. Raises ConfigError when none is left that trains."""
    unknown = [reward for reward in config.rewards if needs_weights(reward) and not has_random_weights(reward)]
    if not any(reward.trains for reward in config.rewards if reward not in unknown):
        names = ", ".join(reward.implementation for reward in unknown)
        raise ConfigError(
            f"there are no random weights for the rewards {names}, so nothing is left to learn from; rehearse with "
            "another reward, say --set rewards='[{name: clip_score}]'"
        )
    for reward in unknown:
        cutter.drop_reward(reward.name, "no random weights are known for it")


def with_materials(config: RunConfig, folder: Path, layers: int, texts: list[str]) -> RunConfig:
    """Write the policy and the rewards into `folder`; the config that takes them from there.

    Raises ModelError, and OSError.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    rewards = tuple(
        with_random_weights(reward, folder / "rewards" / reward.name.replace(":", "."), _read_by(texts), layers)
        if has_random_weights(reward)
        else reward
        for reward in config.rewards
    )
    config = config.model_copy(update={"rewards": rewards})
    return config if is_tiny(config) else _with_policy(config, folder / "policy", layers, texts)


def _with_policy(config: RunConfig, folder: Path, layers: int, texts: list[str]) -> RunConfig:
    import torch

    from learner.warm_start.random_janus import save_random_janus
    from learner.warm_start.tiny_janus import collect_words

    source = Path(config.model.path).expanduser()
    save_random_janus(
        folder,
        _model_config(config),
        layers=layers,
        dtype=getattr(torch, config.model.dtype),
        words=collect_words(texts),
        like=source if source.is_dir() else None,
    )
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(folder), "revision": None})})


def _model_config(config: RunConfig) -> dict[str, Any]:
    path = config.model.path
    if path in KNOWN:
        return dict(KNOWN[path])
    file = Path(path).expanduser() / "config.json"
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model '{path}': its sizes are not known here, and a rehearsal downloads nothing; give a folder with its "
            f"config.json and tokenizer, or one of {', '.join(KNOWN)}"
        ) from error
    return content


def _read_by(texts: list[str]) -> list[str]:
    """What the rewards read beside prompts: their own questions."""
    return [*texts, "a photo depicts", "show figure and"]


def _can_read(source: str, max_bad_lines: int) -> bool:
    try:
        load_prompts(source, max_bad_lines)
    except DataError:
        return False
    return True
