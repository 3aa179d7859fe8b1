"""A checkpoint's manifest: size and SHA-256 of each of its files, by which it is known to be whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from cluster.actors.folders import Digest, digest_file, files_of

MANIFEST: Final = "manifest.json"
RUN_FILE: Final = "run.json"
STATE_FILE: Final = "state/learner.json"
MODEL_FILE: Final = "model/config.json"
HASHING_THREADS: Final = 4


def write_manifest(folder: Path, known: Mapping[str, Digest]) -> None:
    """Bring all files of `folder` to the disk, and beside them their digests. Raises OSError.

    known: of files that were brought there and read by those who wrote them; the others are read here.
    """
    names = [path.relative_to(folder).as_posix() for path in files_of(folder)]
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        others = [name for name in names if name not in known]
        digests = dict(zip(others, threads.map(lambda name: digest_file(folder / name), others), strict=True))
    manifest = {name: known[name] if name in known else digests[name] for name in sorted({*names, *known})}
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    sync(path)


def find_fault(folder: Path) -> str | None:
    """Why a checkpoint cannot be used: the first file that is not what its manifest says; None when all are."""
    try:
        manifest: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = list(manifest)
    except (OSError, ValueError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    if missing := [name for name in (RUN_FILE, STATE_FILE, MODEL_FILE) if name not in names]:
        return f"{MANIFEST} does not list {missing[0]}"
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        found = threads.map(lambda name: _digest_or_none(folder / name), names)
        for name, digest in zip(names, found, strict=True):
            if digest is None:
                return f"{name} is missing"
            if digest != manifest[name]:
                return f"{name} is not what was written ({digest['bytes']} bytes, SHA-256 {digest['sha256'][:12]}…)"
    return None


def size_of(path: Path) -> int | None:
    """Of a file, in bytes, as its folder shows it now; None where there is none."""
    try:
        os.listdir(path.parent)  # so that a network file system looks again
        return path.stat().st_size
    except OSError:
        return None


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest_or_none(path: Path) -> Digest | None:
    try:
        return digest_file(path)
    except OSError:
        return None
