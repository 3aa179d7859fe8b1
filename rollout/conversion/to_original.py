"""From a Hugging Face folder back to the authors' format, so that their own code runs what bicot has trained."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import JanusConfig

from configs.errors import ModelError
from rollout.conversion.configs import original_config
from rollout.conversion.folders import (
    AUTHORS_FILES,
    KEPT,
    TOKENIZER_FILES,
    UNUSED_WEIGHTS,
    copy_files,
    read_json,
    whole_or_nothing,
    write_json,
)
from rollout.conversion.names import UNUSED, to_original
from rollout.conversion.to_hugging_face import check_tensors
from rollout.conversion.weights import read_weights, write_weights


def convert_to_original(source: Path, target: Path, like: Path | None = None, max_shard_size: str = "5GB") -> list[str]:
    """Write the Hugging Face folder `source` in the authors' format as `target`.

    like: a checkpoint whose small files and unused tensors are taken over, in either format, such as the one that
    training started from; without it, those that `source` has kept of its own conversion. Returns the prefixes of
    tensors that only the authors' code holds and that are missing: it then fills them in at random, and never uses
    them. Raises ModelError when `source` is no whole Janus checkpoint, or `target` exists.
    """
    content = read_json(source / "config.json")
    if content.get("model_type") != "janus":
        raise ModelError(f"{source}/config.json has model_type '{content.get('model_type')}', not 'janus'")
    kept = _folder_of_kept(like) if like is not None else source / KEPT
    with whole_or_nothing(target) as folder:
        tensors = read_weights(source)
        check_tensors(JanusConfig.from_dict(content), {name: tensor.shape for name, tensor in tensors.items()})
        converted = to_original(tensors)
        if kept.is_dir():
            copy_files(AUTHORS_FILES, kept, folder)
            converted |= _unused_of(kept)
        else:
            copy_files(TOKENIZER_FILES, source, folder)
            write_json(folder / "config.json", original_config(JanusConfig.from_dict(content)))
        write_weights(converted, folder, max_shard_size)
    return [prefix for prefix in UNUSED if not any(name.startswith(prefix) for name in converted)]


def _folder_of_kept(like: Path) -> Path:
    """Where a checkpoint in either format has the authors' own files."""
    if read_json(like / "config.json").get("model_type") == "multi_modality":
        return like
    if not (like / KEPT).is_dir():
        raise ModelError(f"{like} is neither in the authors' format nor converted from it")
    return like / KEPT


def _unused_of(kept: Path) -> dict[str, torch.Tensor]:
    if (kept / UNUSED_WEIGHTS).exists():
        return load_file(kept / UNUSED_WEIGHTS)
    if (read_json(kept / "config.json") and any(kept.glob("*.safetensors"))) or any(kept.glob("*.bin")):
        return {name: tensor for name, tensor in read_weights(kept).items() if name.startswith(UNUSED)}
    return {}
