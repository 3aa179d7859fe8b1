"""Where a warm start writes its model: looked at before anything is trained, and swept of what killed ones left.

A model is written to a folder beside its own, `.NAME.` and 32 hexadecimal digits, and renamed when it is whole.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Final

from configs.errors import ConfigError

MAX_WRITING_S: Final = 24 * 3600.0
"""A folder that nothing was written to for so long is written by nobody any more; whole ones take minutes."""
_STAGING: Final = re.compile(r"\..+\.[0-9a-f]{32}")


def staging_folder(output_dir: Path) -> Path:
    """A new name beside `output_dir`, on the same file system."""
    return output_dir.with_name(f".{output_dir.name}.{uuid.uuid4().hex}")


def prepare_output(output_dir: Path) -> None:
    """Make sure that the model can be written, and remove what was left half written beside it.

    Raises ConfigError when the folder cannot be made or written to.
    """
    parent = output_dir.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"the warm-started model cannot be written to {parent}: {error.strerror or error}; "
            "set run.cache_dir to a folder in which you may write"
        ) from error
    sweep_staging(parent)


def sweep_staging(parent: Path) -> None:
    """Remove folders of warm starts that were killed while they wrote."""
    for path in parent.iterdir():
        if _STAGING.fullmatch(path.name) and path.is_dir() and _age_s(path) > MAX_WRITING_S:
            shutil.rmtree(path, ignore_errors=True)  # another process may sweep here, too


def _age_s(folder: Path) -> float:
    """Seconds since something in the folder was written last; 0 for one that is gone meanwhile."""
    try:
        return time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        return 0.0
