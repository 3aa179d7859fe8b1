"""Whether all processes of a run execute the same code.

On a cluster each node has its own copy of bicot: a checkout at the launcher's path, an installed package, or what a
job's working directory brought. A node with another version would train along with other rules, and nobody would know.
So the launcher's digest of its sources travels to every actor (`spawn` sets it in its environment), and an actor
compares it with its own before it starts to work.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

import ray

import cluster
from configs.errors import RunError

VARIABLE = "BICOT_SOURCES_SHA256"
PACKAGES = ("configs", "rollout", "rewards", "learner", "cluster")


@cache
def sources_digest(root: Path | None = None) -> str:
    """SHA-256 over names and contents of the five packages' Python files, below `root` or `sources_root()`."""
    root = root or sources_root()
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def sources_root() -> Path:
    """The folder that this process has imported bicot from."""
    return Path(str(cluster.__file__)).resolve().parents[1]


def check_same_sources(node: str | None = None) -> None:
    """Raises RunError when this process executes other sources than the launcher that made it.

    node: how the error names this one; None asks Ray for its address.
    """
    expected = os.environ.get(VARIABLE)
    if expected is not None and expected != (own := sources_digest()):
        place = node or ray.util.get_node_ip_address()
        raise RunError(
            f"node {place} has another version of bicot, at {sources_root()} (sources {own[:12]}, the launcher's are "
            f"{expected[:12]}); bring all nodes to the same version, or submit the run as a job with --working-dir"
        )
