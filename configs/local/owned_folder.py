"""Temporary folders that do not outlive their process for long: one whose process was killed, the next one removes.

BASE/PREFIXxxxxxxxx/      0700
    owner                 what its owner writes there; locked while its process lives, however that ends
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

OWNER: Final = "owner"
SOCKET_BYTES: Final = 107
"""The path of a Unix socket has no more."""


class OwnedFolder:
    """A new folder, removed by `close`; safe to close twice."""

    def __init__(self, prefix: str, base: Path, told: str = "a process of bicot") -> None:
        """told: what is said to who sweeps it; not empty. Raises OSError."""
        self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir=base, ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)
        self._owner = (self.path / OWNER).open("w", encoding="utf-8")
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        self._owner.write(told)
        self._owner.flush()

    def close(self) -> None:
        self._folder.cleanup()
        self._owner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sweep(prefix: str, base: Path, before: Callable[[Path, str], None] = lambda *_: None) -> None:
    """Remove this user's folders whose processes are gone; `before(folder, told)` is called for each of them.

    One without an owner, or whose owner has not written yet, is being made or is no one's, and stays.
    """
    for folder in base.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # somebody else's, of a process that lives, or going just now
            if folder.stat().st_uid != os.getuid():
                continue
            with (folder / OWNER).open(encoding="utf-8") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if told := owner.read():
                    before(folder, told)
                    shutil.rmtree(folder, ignore_errors=True)


def base_for_sockets(num_bytes: int) -> Path | None:
    """The temporary folder: TMPDIR, or /tmp where that is too long (Slurm, macOS); None when both are.

    num_bytes: of the longest path of a socket below it, with the slash before it.
    """
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(base)) + num_bytes <= SOCKET_BYTES and os.access(base, os.W_OK | os.X_OK):
            return Path(base)
    return None
