"""A Ray cluster over several hosts, one raylet on each.

Ray's own token authentication is on: every process of the cluster and the launcher hold the same token, as
docs/untrusted_networks.md tells a user to do it.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.faults.hosts import Host, wait_until
from configs.errors import RunError

GCS_PORT = 6379
OBJECT_STORE_BYTES = 150_000_000
START_TIMEOUT_S = 300.0
"""Of Ray on one host, on a machine that may be busy with other work."""


def ray_environment() -> dict[str, str]:
    """What every host's Ray processes and the launcher have in common."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_raylet_start_wait_time_s": f"{START_TIMEOUT_S:.0f}",  # Ray's own 30 s are short beside a run
        # A lost node is noticed within seconds, so that a story does not take minutes.
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "3",
    }


def start_head(host: Host, num_cpus: int = 0) -> None:
    """The GCS and a raylet; by default without CPUs, so that no worker comes there."""
    head = ("--head", f"--port={GCS_PORT}", "--include-dashboard=false")
    _start_ray(host, *head, num_cpus=num_cpus)


def join(host: Host, head: Host, num_cpus: int) -> None:
    """A raylet on `host`, in the cluster of `head`; the label `host` has its name."""
    _start_ray(host, f"--address={head.address}:{GCS_PORT}", f"--labels=host={host.name}", num_cpus=num_cpus)


def join_all(num_cpus: Mapping[Host, int], head: Host) -> None:
    """`join` for each host, at once."""
    with ThreadPoolExecutor(len(num_cpus)) as threads:
        list(threads.map(lambda host: join(host, head, num_cpus[host]), num_cpus))


def _start_ray(host: Host, *arguments: str, num_cpus: int) -> None:
    ray = str(Path(sys.executable).parent / "ray")
    options = (f"--node-ip-address={host.address}", f"--num-cpus={num_cpus}", "--block", "--disable-usage-stats")
    command = [ray, "start", *arguments, *options, f"--object-store-memory={OBJECT_STORE_BYTES}"]
    process, log = host.start(command, "ray.log")
    wait_until(
        lambda: "Ray runtime started" in log.read_text() or process.poll() is not None,
        START_TIMEOUT_S,
        f"no Ray on {host.name} within {START_TIMEOUT_S:g} s",
    )
    if process.poll() is not None:
        raise RunError(f"no Ray on {host.name}: {log.read_text()}")
