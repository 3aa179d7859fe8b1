"""The checkpoints of a run: written whole, checked when read, kept by a policy.

    checkpoints/step_000050/
        model/          a plain Hugging Face folder: for `rollout.generate`, `from_pretrained`, or another run
        state/          the learner's, for resuming: see `learner.checkpoint`
        run.json        the run's own, for resuming: see `cluster.state.run_state`
        manifest.json   SHA-256 and size of every other file; written last

A checkpoint is written under a name that ends in `.partial`, and renamed when it is whole. One that does not
agree with its manifest is moved aside to a name that ends in `.damaged`, and the one before it is used.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.learning import LearnerGroup
from cluster.state.checkpoint_copies import CheckpointCopies
from cluster.state.run_directory import key_of
from cluster.state.run_state import RunState
from configs.schema import CheckpointConfig

PREFIX = "step_"
PARTIAL = ".partial"
DAMAGED = ".damaged"
MANIFEST = "manifest.json"
RUN_FILE = "run.json"
HASHING_THREADS = 4


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints in `directory`. `note(text)` tells the user of one that cannot be used or copied."""

    directory: Path
    config: CheckpointConfig
    note: Callable[[str], None]

    async def save(self, learner: LearnerGroup, state: RunState) -> Path:
        """Write the checkpoint after `state.step` optimizer steps; returns its folder. Every rank takes part."""
        final = self.directory / f"{PREFIX}{state.step:06d}"
        if final.exists():
            return final
        partial = final.with_name(final.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        await learner.save_checkpoint(str(partial / "state"), state.step)
        await learner.save_pretrained(str(partial / "model"))
        (partial / RUN_FILE).write_text(state.to_json(), encoding="utf-8")
        await asyncio.to_thread(write_manifest, partial)
        partial.rename(final)
        _sync(self.directory)
        await self._copy(final)
        self._prune()
        return final

    def all(self) -> list[Path]:
        """Checkpoints that were written to their end, oldest first."""
        found = self.directory.glob(f"{PREFIX}*")
        return sorted(path for path in found if path.suffix not in (PARTIAL, DAMAGED))

    async def newest(self) -> tuple[Path, RunState] | None:
        """The newest checkpoint whose files are what was written; None when there is none, here or at the copies.

        Those that are not are named to the user and moved aside.
        """
        for path in reversed(self.all()):
            if (state := await self._read(path)) is not None:
                return path, state
        if self.config.url is None:
            return None
        fetched = await asyncio.to_thread(self._copies(self.config.url).fetch_newest, self.directory)
        state = None if fetched is None else await self._read(fetched)
        return None if fetched is None or state is None else (fetched, state)

    async def _read(self, path: Path) -> RunState | None:
        fault = await asyncio.to_thread(find_fault, path)
        if fault is None:
            return RunState.from_json((path / RUN_FILE).read_text(encoding="utf-8"))
        aside = path.with_name(path.name + DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        self.note(f"checkpoint {path} is damaged and not used: {fault}; it now lies in {aside.name}")
        return None

    async def _copy(self, checkpoint: Path) -> None:
        if self.config.url is None:
            return
        try:
            await asyncio.to_thread(self._copies(self.config.url).add, checkpoint)
        except Exception as error:  # noqa: BLE001 - each file system raises its own; the run has its local checkpoint
            self.note(f"checkpoint {checkpoint.name} was not copied to checkpoint.url: {type(error).__name__}: {error}")

    def _copies(self, url: str) -> CheckpointCopies:
        return CheckpointCopies(url, key_of(self.directory.parent), self.is_kept)

    def is_kept(self, name: str, names: list[str]) -> bool:
        """Whether the policy keeps checkpoint `name`, of `names`, oldest first."""
        every = self.config.keep_every
        step = int(name.removeprefix(PREFIX))
        return name in names[-self.config.keep_last :] or (every is not None and step % every == 0)

    def _prune(self) -> None:
        paths = self.all()
        names = [path.name for path in paths]
        for path in paths:
            if not self.is_kept(path.name, names):
                shutil.rmtree(path)


def write_manifest(folder: Path) -> None:
    """Bring all files of `folder` to the disk, and beside them their digests."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        digests = dict(zip(files, threads.map(_digest, files), strict=True))
    manifest = {str(path.relative_to(folder)): digest for path, digest in digests.items()}
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _sync(path)


def find_fault(folder: Path) -> str | None:
    """Why a checkpoint cannot be used: the first file that is not what its manifest says; None when all are."""
    try:
        manifest: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = list(manifest)
    except (OSError, ValueError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    if RUN_FILE not in names:
        return f"{MANIFEST} does not list {RUN_FILE}"
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        found = threads.map(lambda name: _digest_or_none(folder / name), names)
        for name, digest in zip(names, found, strict=True):
            if digest is None:
                return f"{name} is missing"
            if digest != manifest[name]:
                return f"{name} is not what was written ({digest['bytes']} bytes, SHA-256 {digest['sha256'][:12]}…)"
    return None


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _digest_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return _digest(path)
    except OSError:
        return None


def _sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
