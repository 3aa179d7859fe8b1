"""Weights of a checkpoint folder as one dictionary, whatever files they lie in."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from configs.errors import ModelError

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
PATTERNS = ("*.safetensors", "*.bin")
"""The weight files of a hub repository."""


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, mapped from its files and not copied; safetensors are taken before pickles.

    Pickles are read with `weights_only=True`: no code of the file runs. Raises ModelError for missing or broken files.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        try:
            found = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
        except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ModelError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
        if twice := tensors.keys() & found.keys():
            raise ModelError(f"{path} holds '{min(twice)}', which another file of the folder holds, too")
        tensors.update(found)
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    for name in _INDEXES:
        if (folder / name).exists():
            return _files_of_index(folder / name)
    for name in _SINGLE:
        if (folder / name).exists():
            return [folder / name]
    raise ModelError(f"model {folder}: none of {', '.join((*_INDEXES, *_SINGLE))} is there")


def _files_of_index(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{index} is no index of weight files: {error!r}") from error
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise ModelError(f"{index} names {', '.join(missing)}, which is not there; is the download complete?")
    return [index.parent / name for name in names]


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{path} does not hold a dictionary of tensors")
    return content


def write_weights(tensors: Mapping[str, torch.Tensor], folder: Path, max_shard_size: str) -> None:
    """Write safetensors of at most `max_shard_size` (such as "5GB") each, with an index when there are several."""
    own = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_torch_state_dict(own, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})
