"""Folders and files that the processes of a run share, or must be shown not to share.

    probe       the launcher writes a file; who reads it back, and answers beside it, sees the same folder
    digests     name, size and SHA-256 of what a process wrote, so that another one can tell whether it is all there
    pack        folder ─► parts ─► object store ─► unpack on a node that has no such folder

A ~ in a path stands for the home of the node where it is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

PART_BYTES: Final = 64 << 20


class Digest(TypedDict):
    """What a file holds, in short."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class WrittenFiles:
    """What one process wrote. Produced by `cluster.actors.learner`, consumed by `cluster.state.checkpoints`."""

    address: str
    """Of its node."""
    digests: dict[str, Digest]
    """Path, relative to the folder that it was told to write to -> what the file holds."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file on its way to another node."""

    name: str
    """Path relative to the folder."""
    data: bytes
    is_first: bool


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """What another process makes of a folder."""

    address: str
    """Of its node."""
    fault: str | None
    """Why it cannot read or write there; None when it can."""


def digest_file(path: Path) -> Digest:
    """Of one file, which is on the disk when this returns. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, in order of their names."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def answer_probe(folder: str, question: str, answer: str, address: str) -> ProbeAnswer:
    """Read the file `question` of a folder, and write what it holds into a file `answer` beside it."""
    place = Path(folder).expanduser()
    try:
        (place / answer).write_bytes((place / question).read_bytes())
    except OSError as error:
        return ProbeAnswer(address, f"{error.strerror or error} ({error.filename})")
    return ProbeAnswer(address, None)


def is_here(path: str) -> bool:
    """Whether this node has the folder."""
    return Path(path).expanduser().is_dir()


def pack(path: str) -> Iterator[Part]:
    """The files of a folder, in pieces of at most `PART_BYTES`. Raises OSError."""
    folder = Path(path).expanduser()
    for file in files_of(folder):
        name = file.relative_to(folder).as_posix()
        with file.open("rb") as stream:
            is_first = True
            while (data := stream.read(PART_BYTES)) or is_first:
                yield Part(name, data, is_first)
                is_first = False


def unpack(path: str, parts: Iterable[Part]) -> None:
    """Write a folder that was packed elsewhere, unless it is here by now; it appears whole. Raises OSError.

    One process of a node does it, and the others wait for that one.
    """
    folder = Path(path).expanduser()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for part in parts:
                file = partial / part.name
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb" if part.is_first else "ab") as stream:
                    stream.write(part.data)
            partial.rename(folder)
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(partial)
