"""A folder for what one engine leaves in the temporary folder: sockets, rendezvous files, locks of its processes.

vLLM never removes them, and an engine that is killed could not. So each engine has a folder of its own, which goes with
it, or with the next engine or launcher on this machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from configs.errors import ModelError
from configs.local.owned_folder import OwnedFolder, base_for_sockets, sweep

PREFIX: Final = "bicot-vllm-"
_BELOW: Final = len(f"/{PREFIX}XXXXXXXX/01234567-0123-0123-0123-0123456789ab")
"""Bytes of a socket's path below the temporary folder."""


def make_scratch() -> OwnedFolder:
    """A new folder; those that killed engines have left are removed. Raises ModelError where sockets cannot be made."""
    base = base_for_sockets(_BELOW)
    if base is None:
        raise ModelError(f"TMPDIR {tempfile.gettempdir()} is too long for vLLM's sockets; set TMPDIR to a shorter name")
    sweep(PREFIX, base)
    return OwnedFolder(PREFIX, base)


def sweep_scratch() -> None:
    """Remove what engines that were killed have left."""
    if (base := base_for_sockets(_BELOW)) is not None:
        sweep(PREFIX, base)


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
    """Meanwhile `tempfile` uses `folder` in this process, where it has read TMPDIR already."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
