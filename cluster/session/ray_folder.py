"""The folder of a local Ray: where it lies, and what becomes of one whose launcher was killed.

    TMPDIR/bicot-ray-XXXXXXXX/      0700: what lies in it is out of reach, whatever modes Ray gives it
        owner                       where its logs go, see `configs.local.owned_folder`
        ray/                        Ray's own folder: sockets, logs

A Unix socket's path has at most 107 bytes, and Ray's are long. Where TMPDIR is too long for them (Slurm, macOS), the
folder is in /tmp.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from cluster.session.stop_signals import end_processes
from configs.errors import RunError
from configs.local.owned_folder import SOCKET_BYTES, OwnedFolder, base_for_sockets, sweep
from rollout.vllm.scratch import sweep_scratch

PREFIX: Final = "bicot-ray-"
_BELOW: Final = len(f"/{PREFIX}XXXXXXXX/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
"""Bytes of the longest socket's path below the temporary folder."""


@contextmanager
def short_lived_folder(logs_dir: Path, note: Callable[[str], None]) -> Iterator[Path]:
    """A folder for a local Ray; of it only the logs are kept, in `logs_dir`. Sweeps those that others have left.

    Raises RunError when the machine has no temporary folder of a short name.
    """
    base = find_base()
    if str(base) != tempfile.gettempdir():
        note(f"TMPDIR {tempfile.gettempdir()} is too long for Ray's sockets; this run's Ray lies in {base}")
    sweep_killed(base, note)
    with OwnedFolder(PREFIX, base, str(logs_dir.absolute())) as folder:
        try:
            yield folder.path
        finally:
            _keep_logs(folder.path, logs_dir)
    sweep_scratch()


def find_base() -> Path:
    """The temporary folder to use: TMPDIR, or /tmp where that is too long. Raises RunError when both are."""
    if (base := base_for_sockets(_BELOW)) is not None:
        return base
    named = tempfile.gettempdir()
    raise RunError(
        f"TMPDIR {named} has {len(os.fsencode(named))} bytes, and the sockets of a local Ray leave room for "
        f"{SOCKET_BYTES - _BELOW}; set TMPDIR to a folder with a shorter name that you may write to"
    )


def sweep_killed(base: Path, note: Callable[[str], None]) -> None:
    """Remove the folders of launchers that were killed, with what of their Ray is still alive; their logs are kept."""

    def rescue(folder: Path, logs: str) -> None:
        end_processes(list(_processes_in(folder)))
        _keep_logs(folder, Path(logs))
        note(f"{folder} was left by a launcher that was killed, and is removed; its logs: {logs}")

    sweep(PREFIX, base, rescue)


def _processes_in(folder: Path) -> Iterator[psutil.Process]:
    """Ours whose Ray lies in `folder`."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RAY_AUTH_TOKEN_PATH", "").startswith(f"{folder}{os.sep}"):
                yield process


def _keep_logs(folder: Path, logs_dir: Path) -> None:
    logs = folder / "ray" / "session_latest" / "logs"
    if logs.is_dir() and logs_dir.is_dir():
        with contextlib.suppress(shutil.Error):  # of a file that went meanwhile
            shutil.copytree(logs, logs_dir / "ray", ignore_dangling_symlinks=True, dirs_exist_ok=True)
