"""The folder that travels with a Ray job: what is packed, and whether the dashboard takes it.

Ray packs the working directory into one zip file and posts it to the dashboard, which answers a body of more than
100 MiB with "413 Request Entity Too Large" and no word of what is large. So it is packed here first, by Ray's own code.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from configs.errors import ConfigError

NUM_NAMED = 5
_NOBODY = logging.getLogger("cluster.submission.silent")
_NOBODY.addHandler(logging.NullHandler())
_NOBODY.propagate = False


@dataclass(frozen=True, slots=True)
class Package:
    """A packed working directory."""

    names: frozenset[str]
    """Paths of its files, relative to the working directory."""
    num_bytes: int
    """Of the zip file."""
    largest: tuple[tuple[str, int], ...]
    """(path in the package, bytes it takes there), at most `NUM_NAMED`, the largest first."""

    def describe(self) -> str:
        """One line for people."""
        return f"{len(self.names)} files, {_mib(self.num_bytes)} packed"


def pack(folder: Path, excludes: Sequence[str], limit: int | None = None) -> Package:
    """Pack a working directory as Ray would, and throw the result away.

    excludes: patterns as in .gitignore, beside .gitignore, .rayignore and Ray's own. limit: bytes; None: what Ray's
    dashboard takes.
    Raises ConfigError when the folder cannot be read or is too large to be submitted, naming its largest files.
    """
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
    from ray._private.runtime_env.packaging import create_package

    if not folder.is_dir():
        raise ConfigError(f"--working-dir {folder}: there is no such folder")
    with tempfile.TemporaryDirectory(prefix="bicot-package-") as temporary:
        target = Path(temporary) / "package.zip"
        try:
            create_package(
                str(folder),
                target,
                include_gitignore=os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1",
                excludes=[*_rays_own(), *excludes],
                logger=_NOBODY,
            )
        except OSError as error:
            raise ConfigError(f"--working-dir {folder}: cannot be packed: {error}") from error
        with ZipFile(target) as archive:
            files = sorted(((i.filename, i.compress_size) for i in archive.infolist()), key=lambda file: -file[1])
        package = Package(frozenset(name for name, _ in files), target.stat().st_size, tuple(files[:NUM_NAMED]))
    limit = limit or DASHBOARD_CLIENT_MAX_SIZE
    if package.num_bytes >= limit:
        named = "".join(f"\n  {_mib(size)}  {name}" for name, size in package.largest)
        raise ConfigError(
            f"--working-dir {folder}: packed it has {_mib(package.num_bytes)}, and Ray's dashboard takes "
            f"{_mib(limit)}; leave files out by a line in .rayignore or by --exclude. The largest:{named}"
        )
    return package


def _rays_own() -> list[str]:
    from ray._private.ray_constants import get_runtime_env_default_excludes

    return list(get_runtime_env_default_excludes())


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
