"""The checkpoints of a run: written whole, checked when read, kept by a policy.

    checkpoints/step_000050/
        model/          a plain Hugging Face folder: for `rollout.generate`, `from_pretrained`, or another run
        state/          the learner's, for resuming: see `learner.checkpoint`
        run.json        the run's own, for resuming: see `cluster.state.run_state`
        manifest.json   SHA-256 and size of every other file; written last

A checkpoint is written under a name that ends in `.partial`, and renamed when it is whole: when all that the
learner's ranks say they have written is seen here, too. One that does not agree with its manifest is moved aside to a
name that ends in `.damaged`, and the one before it is used; it goes when `checkpoint.keep_last` newer ones are whole.
Whatever else lies in the folder is left alone.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.actors.folders import Digest, WrittenFiles
from cluster.learning import LearnerGroup
from cluster.state.checkpoint_copies import CheckpointCopies
from cluster.state.checkpoint_names import name_of, step_of
from cluster.state.manifest import MODEL_FILE, RUN_FILE, STATE_FILE, find_fault, size_of, sync, write_manifest
from cluster.state.run_copies import RunCopies
from cluster.state.run_directory import key_of
from cluster.state.run_state import RunState
from configs.errors import CheckpointError
from configs.schema import CheckpointConfig

PARTIAL: Final = ".partial"
DAMAGED: Final = ".damaged"
SEEN_TIMEOUT_S: Final = 60.0
"""For a file that a rank has written on another node to be seen here: network file systems take their time."""
SEEN_POLL_S: Final = 0.5
GIB: Final = 2**30


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints in `directory`. `note(text)` tells the user of one that cannot be used or copied."""

    directory: Path
    config: CheckpointConfig
    note: Callable[[str], None]
    seen_timeout_s: float = SEEN_TIMEOUT_S

    async def write(self, learner: LearnerGroup, state: RunState) -> Path:
        """Write the checkpoint after `state.step` optimizer steps, of which the ranks have taken a snapshot; returns
        its folder. The ranks may compute meanwhile.

        Raises CheckpointError when it cannot be written, or is not whole as seen from here; the learner is well then.
        """
        final = self.path_of(state)
        partial = final.with_name(final.name + PARTIAL)
        try:
            self._make_room()
            partial.mkdir(parents=True)
            written = await learner.write_snapshot(str(partial))
            (partial / RUN_FILE).write_text(state.to_json(), encoding="utf-8")
            digests = await self._see_all(partial, written)
            await asyncio.to_thread(write_manifest, partial, digests)
            partial.rename(final)
            sync(self.directory)
        except OSError as error:
            self._drop(partial)
            raise CheckpointError(f"checkpoint {final}: {error}") from error
        except CheckpointError:
            self._drop(partial)
            raise
        await self._copy(final)
        self._prune()
        return final

    def path_of(self, state: RunState) -> Path:
        """The folder of the checkpoint after `state.step` steps, which is there when it is whole."""
        return self.directory / name_of(state.step)

    def all(self) -> list[Path]:
        """Checkpoints that were written to their end, oldest first."""
        steps = {step: path for path in self._entries() if (step := step_of(path.name)) is not None}
        return [steps[step] for step in sorted(steps)]

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

    def is_kept(self, name: str, names: list[str]) -> bool:
        """Whether the policy keeps checkpoint `name`, of `names`, oldest first."""
        every = self.config.keep_every
        step = step_of(name)
        return step is None or name in names[-self.config.keep_last :] or (every is not None and step % every == 0)

    def _entries(self) -> list[Path]:
        """What is called as we call ours, and is a folder of its own: a link, an archive or a copy is the user's."""
        if not self.directory.is_dir():
            return []
        return [path for path in self.directory.iterdir() if path.is_dir() and not path.is_symlink()]

    async def _read(self, path: Path) -> RunState | None:
        fault = await asyncio.to_thread(find_fault, path)
        if fault is None:
            try:
                return RunState.from_json((path / RUN_FILE).read_text(encoding="utf-8"))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                fault = f"{RUN_FILE} cannot be understood ({type(error).__name__}: {error})"
        aside = path.with_name(path.name + DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        self.note(f"checkpoint {path} is damaged and not used: {fault}; it now lies in {aside.name}")
        return None

    async def _see_all(self, partial: Path, written: Sequence[WrittenFiles]) -> dict[str, Digest]:
        """The digests of all that the ranks wrote, by path in the checkpoint, when all of it is seen here."""
        wanted: dict[str, tuple[Digest, str]] = {
            name: (digest, files.address) for files in written for name, digest in files.digests.items()
        }
        if missing := [name for name in (STATE_FILE, MODEL_FILE) if name not in wanted]:
            raise CheckpointError(f"checkpoint {partial}: no rank of the learner has written {missing[0]}")
        deadline = asyncio.get_running_loop().time() + self.seen_timeout_s
        while unseen := [name for name, (digest, _) in wanted.items() if size_of(partial / name) != digest["bytes"]]:
            if asyncio.get_running_loop().time() >= deadline:
                digest, address = wanted[unseen[0]]
                raise CheckpointError(
                    f"checkpoint {partial}: {unseen[0]} ({digest['bytes']} bytes), which a learner rank has written on "
                    f"node {address}, is not seen on the launcher's node, and {len(unseen) - 1} other files neither; "
                    "set run.dir to a folder on a disk that all nodes share"
                )
            await asyncio.sleep(SEEN_POLL_S)
        return {name: digest for name, (digest, _) in wanted.items()}

    def _make_room(self) -> None:
        """Remove what earlier tries have left, and raise CheckpointError where another one cannot fit."""
        for path in self._entries():
            if path.name.endswith(PARTIAL) and step_of(path.name.removesuffix(PARTIAL)) is not None:
                self._drop(path)
        if not (older := self.all()):
            return
        needed = sum(path.stat().st_size for path in older[-1].rglob("*") if path.is_file())
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise CheckpointError(
                f"{self.directory}: {free / GIB:.3g} GiB are free on its disk, and the last checkpoint takes "
                f"{needed / GIB:.3g} GiB; make room there, or lower checkpoint.keep_last"
            )

    async def _copy(self, checkpoint: Path) -> None:
        if self.config.url is None:
            return
        try:
            await asyncio.to_thread(self._copies(self.config.url).add, checkpoint)
            run = self.directory.parent
            await asyncio.to_thread(RunCopies(self.config.url, key_of(run)).add, run)
        except Exception as error:  # noqa: BLE001 - each file system raises its own; the run has its local checkpoint
            self.note(f"checkpoint {checkpoint.name} was not copied to checkpoint.url: {type(error).__name__}: {error}")

    def _copies(self, url: str) -> CheckpointCopies:
        return CheckpointCopies(url, key_of(self.directory.parent), self.is_kept)

    def _prune(self) -> None:
        paths = self.all()
        names = [path.name for path in paths]
        for path in paths:
            if not self.is_kept(path.name, names):
                self._drop(path)
        oldest = step_of(names[-self.config.keep_last :][0]) or 0
        for path in self._entries():
            step = step_of(path.name.removesuffix(DAMAGED))
            if path.name.endswith(DAMAGED) and step is not None and step < oldest:
                self._drop(path)  # it was left to be looked at, and takes as much room as a whole one

    def _drop(self, folder: Path) -> None:
        """Remove a folder of ours. That it cannot be, since somebody reads it, is no reason to end a run."""
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            self.note(f"{folder} is not wanted any more, and cannot be removed: {error}")
