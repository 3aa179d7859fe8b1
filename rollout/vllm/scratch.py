"""A folder for what one engine leaves in the temporary folder: sockets, rendezvous files, locks of its processes; and a
name for what it leaves in /dev/shm, semaphores of Python's multiprocessing.

vLLM never removes them, and an engine that is killed could not. So each engine has a folder of its own, which goes with
it, or with the next engine or launcher on this machine, and so do the semaphores that are named after it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from configs.errors import ModelError
from configs.local.owned_folder import OwnedFolder, base_for_sockets, sweep

PREFIX: Final = "bicot-vllm-"
SHARED_MEMORY: Final = Path("/dev/shm")
_BELOW: Final = len(f"/{PREFIX}XXXXXXXX/01234567-0123-0123-0123-0123456789ab")
"""Bytes of a socket's path below the temporary folder."""


def make_scratch() -> OwnedFolder:
    """A new folder; those that killed engines have left are removed. Raises ModelError where sockets cannot be made."""
    base = base_for_sockets(_BELOW)
    if base is None:
        raise ModelError(f"TMPDIR {tempfile.gettempdir()} is too long for vLLM's sockets; set TMPDIR to a shorter name")
    sweep_scratch(base)
    return OwnedFolder(PREFIX, base)


def end_scratch(folder: OwnedFolder) -> None:
    """Remove all of it, once the engine's processes have ended; safe to call twice."""
    remove_semaphores(folder.path.name)
    folder.close()


def sweep_scratch(base: Path | None = None) -> None:
    """Remove what engines that were killed have left; base: where their folders are, if not in the temporary folder."""
    base = base or base_for_sockets(_BELOW)
    if base is not None:
        sweep(PREFIX, base, lambda folder, _: remove_semaphores(folder.name))


def remove_semaphores(owner: str) -> None:
    """Those whose names were made in `temporary_files_in` a folder of that name, here or in processes started there."""
    for path in SHARED_MEMORY.glob(f"sem.{owner}-*"):
        with contextlib.suppress(OSError):  # gone already
            path.unlink()


def scratch_environment(folder: Path) -> dict[str, str]:
    """Variables that lead vLLM and its processes there; what was compiled before is still found where it was."""
    compiled = os.path.join(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")
    return {
        "TMPDIR": str(folder),
        "VLLM_RPC_BASE_PATH": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", compiled),
    }


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Meanwhile `tempfile` uses `folder` in this process, where it has read TMPDIR already; and semaphores that this
    process makes, and those that it starts, are named after it."""
    names: Any = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # there is no public way
    tempdir, prefix = tempfile.tempdir, names["semprefix"]
    tempfile.tempdir, names["semprefix"] = str(folder), f"/{folder.name}"
    try:
        yield
    finally:
        tempfile.tempdir, names["semprefix"] = tempdir, prefix
