"""Copies of a run's checkpoints at any address that fsspec knows: s3://, gs://, file://, …

    URL/KEY/step_000050/…    the files of the checkpoint; its manifest.json comes last, and without it there is no copy

KEY is the run's name and its random id (RunDirectory.key): who has another run of the same name has other copies.

Object stores cannot rename a folder, so being whole is told by that last file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from cluster.state.checkpoint_names import step_of
from cluster.state.manifest import MANIFEST


@dataclass(frozen=True, slots=True)
class CheckpointCopies:
    """`is_kept(name, all names)` is the policy. Every method raises what the file system raises."""

    url: str
    run_name: str
    is_kept: Callable[[str, list[str]], bool]

    def add(self, checkpoint: Path) -> None:
        """Copy a checkpoint, and remove copies that the policy does not keep."""
        system, root = self._open()
        target = f"{root}/{checkpoint.name}"
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
        for path in [*files, checkpoint / MANIFEST]:
            remote = f"{target}/{path.relative_to(checkpoint).as_posix()}"
            system.makedirs(remote.rpartition("/")[0], exist_ok=True)
            system.put_file(str(path), remote)
        names = self._whole(system, root)
        for name in names:
            if not self.is_kept(name, names):
                system.rm(f"{root}/{name}", recursive=True)

    def fetch_newest(self, directory: Path) -> Path | None:
        """Bring the newest whole copy into `directory`; None when there is none."""
        system, root = self._open()
        names = self._whole(system, root)
        if not names:
            return None
        final = directory / names[-1]
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        source = f"{root}/{names[-1]}"
        for remote in system.find(source):
            path = partial / remote.removeprefix(f"{source}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(remote, str(path))
        partial.rename(final)
        return final

    def names(self) -> list[str]:
        """Of the whole copies, oldest first."""
        return self._whole(*self._open())

    def _open(self) -> tuple[Any, str]:
        system, root = fsspec.core.url_to_fs(self.url)
        return system, f"{root.rstrip('/')}/{self.run_name}"

    def _whole(self, system: Any, root: str) -> list[str]:
        """Names of the whole copies, oldest first."""
        if not system.exists(root):
            return []
        manifests = (path for path in system.find(root) if path.endswith(f"/{MANIFEST}"))
        steps = {
            step: name for name in (path.split("/")[-2] for path in manifests) if (step := step_of(name)) is not None
        }
        return [steps[step] for step in sorted(steps)]
