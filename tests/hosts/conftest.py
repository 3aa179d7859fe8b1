"""Hosts for the stories; skipped with the reason where this machine cannot make any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.faults.host_ray import join, ray_environment, start_head
from cluster.faults.hosts import Host, several_hosts, why_not
from tests.tiny_models import tiny_janus_folder

MakeCluster = Callable[..., dict[str, Host]]


@pytest.fixture(scope="session")
def hosts_allowed() -> None:
    if (reason := why_not()) is not None:
        pytest.skip(f"several hosts: {reason}")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder for `make_cluster`'s `shared`: every host sees it as /srv/shared. It holds a tiny Janus."""
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@pytest.fixture
def make_cluster(hosts_allowed: None) -> Iterator[MakeCluster]:
    """make_cluster({"a": 2, "b": 1}, shared=None, absent=()): a head without CPUs, and hosts with a raylet of so many
    CPUs each. `absent` hosts exist, but have not joined."""
    with ExitStack() as stack:

        def make(
            num_cpus: Mapping[str, int], shared: Path | None = None, absent: tuple[str, ...] = ()
        ) -> dict[str, Host]:
            hosts = stack.enter_context(several_hosts(["head", *num_cpus], ray_environment(), shared))
            start_head(hosts["head"])
            for name, cpus in num_cpus.items():
                if name not in absent:
                    join(hosts[name], hosts["head"], cpus)
            return hosts

        yield make


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    return tiny_janus_folder()
