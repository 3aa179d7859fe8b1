"""The folder that a warm start begins with: the given checkpoint, or a tiny Janus built for the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from configs.schema import RunConfig, WarmStartConfig
from learner.warm_start.data import SHAPES, load_examples
from learner.warm_start.tiny_janus import build_tiny_janus, collect_words, save_pretrained_model
from rollout.janus_checkpoint import resolve_folder
from rollout.shapes.world import VOCABULARY


def prepare_base(config: RunConfig, section: WarmStartConfig, scratch: Path) -> Path:
    """The folder of `config.model`; a tiny Janus is written to `scratch`. Every rank calls it.

    Raises ModelError when there is no such model, DataError when the examples cannot be read.
    """
    if config.model.tiny is None:
        return resolve_folder(config.model.path, config.model.revision)
    if dist.get_rank() == 0:
        tiny = config.model.tiny
        save_pretrained_model(*build_tiny_janus(tiny, _words(config, section, tiny.image_size)), scratch)
    _broadcast_folder(scratch)
    return scratch


def _words(config: RunConfig, section: WarmStartConfig, image_size: int) -> list[str]:
    """All words that the policy will read or write."""
    rollout = config.rollout
    texts = [rollout.system_prompt or "", (rollout.instruction or "").replace("{prompt}", "")]
    if section.examples == SHAPES:
        texts += VOCABULARY
    else:
        for example in load_examples(section, image_size).examples:
            texts += [example.prompt, example.plan]
    return collect_words(texts)


def _broadcast_folder(folder: Path) -> None:
    """Give every rank a copy of rank 0's small folder: transformers saves nothing on any other rank."""
    files: list[Any] = [None]
    if dist.get_rank() == 0:
        files = [{path.name: path.read_bytes() for path in folder.iterdir()}]
    dist.broadcast_object_list(files)
    folder.mkdir(exist_ok=True)
    for name, content in files[0].items():
        (folder / name).write_bytes(content)
