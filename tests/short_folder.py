"""Folders for a test's own Ray: pytest's have names that are too long for its sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.local.owned_folder import OwnedFolder, sweep

PREFIX = "bt-"
BASE = Path("/tmp")


@contextmanager
def short_folder() -> Iterator[Path]:
    """A new folder, which goes; those that killed sessions have left are removed."""
    sweep(PREFIX, BASE)
    with OwnedFolder(PREFIX, BASE) as folder:
        yield folder.path
