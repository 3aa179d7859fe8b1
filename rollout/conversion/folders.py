"""The small files of a checkpoint folder on their way from one format to the other."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.errors import ModelError

KEPT = "original"
"""Folder inside a converted checkpoint: what of the authors' own files transformers' format has no place for."""
UNUSED_WEIGHTS = "unused.safetensors"
"""In `KEPT`: the tensors that only the authors' code holds."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)
AUTHORS_FILES = ("config.json", "processor_config.json", "preprocessor_config.json", *TOKENIZER_FILES)
TAGS = {
    "image_tag": "<image_placeholder>",
    "image_start_tag": "<begin_of_image>",
    "image_end_tag": "<end_of_image>",
    "pad_tag": "<｜▁pad▁｜>",
}
"""Special tokens by their names in the authors' processor_config.json, with that code's defaults."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file. Raises ModelError for a broken one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_files(names: tuple[str, ...], source: Path, target: Path) -> None:
    """Copy those of the files that are there."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """A folder beside `target` to write into; it becomes `target` at the end, and is removed after an error.

    Raises ModelError when there is something at `target` already, or when it cannot be written.
    """
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise ModelError(f"{target} is there already; name another folder, or remove it")
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        staging.mkdir(parents=True)
        yield staging
        staging.replace(target)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
