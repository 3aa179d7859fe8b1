"""Hosts for the stories; skipped with the reason where this machine cannot make any."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cluster.faults.host_ray import join_all, ray_environment, start_head
from cluster.faults.hosts import Host, several_hosts, why_not
from tests.tiny_models import tiny_janus_folder

MakeCluster = Callable[..., dict[str, Host]]


@pytest.fixture(scope="session")
def hosts_allowed() -> None:
    if (reason := why_not()) is not None:
        pytest.skip(f"several hosts: {reason}")


@contextmanager
def cluster_of(num_cpus: Mapping[str, int], shared: Path, absent: tuple[str, ...] = ()) -> Iterator[dict[str, Host]]:
    """A head without CPUs, and hosts with a raylet of so many CPUs each; all see `shared` as /srv/shared.

    `absent` hosts exist, but have not joined.
    """
    with several_hosts(["head", *num_cpus], ray_environment(), shared) as hosts:
        start_head(hosts["head"])
        join_all({hosts[name]: cpus for name, cpus in num_cpus.items() if name not in absent}, hosts["head"])
        yield hosts


def disk_with_model(folder: Path) -> Path:
    """A shared disk that holds a tiny Janus, as `model`."""
    shutil.copytree(tiny_janus_folder(), folder / "model")
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return disk_with_model(tmp_path)


@pytest.fixture
def make_cluster(hosts_allowed: None) -> Iterator[MakeCluster]:
    """make_cluster({"a": 2, "b": 1}, disk, absent=()): see `cluster_of`; taken away at the end of the test."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(cluster_of(*arguments, **options))
