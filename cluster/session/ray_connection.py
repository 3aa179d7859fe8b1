"""Connecting to Ray: a local cluster of our own, the cluster of the job we are in, or a named one."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray

from cluster.session.placement import PlacementPlan, check_fits
from configs.errors import PlacementError, RunError
from configs.schema import ClusterConfig

PROJECT_ROOT = Path(__file__).resolve().parents[2]
OBJECT_STORE_BYTES = 1 << 30
"""Of a local Ray; a step of the shapes world needs a few megabytes, and Ray's default takes a third of the memory."""


@contextmanager
def ray_session(config: ClusterConfig, plan: PlacementPlan, logs_dir: Path) -> Iterator[None]:
    """Connect, check that the plan fits, and disconnect at the end; a local Ray ends with it, and leaves
    its log files in `logs_dir`.

    Raises PlacementError when there is no cluster at the address, or when it is too small and cannot
    grow; RunError when a local Ray does not start.
    """
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    address = config.address or os.environ.get("RAY_ADDRESS") or ("auto" if in_job else None)
    # Actors import bicot from where the launcher did, installed or not; vLLM's own processes inherit it.
    search_path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")]))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not in_job:
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": search_path}}
    with ExitStack() as stack:
        if address is None:
            options["_temp_dir"] = stack.enter_context(_short_lived_folder(logs_dir))
        stack.callback(ray.shutdown)
        if address is None:
            _start_local(config, plan, options)
        else:
            _connect(address, options)
        if not config.autoscaling:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            check_fits(plan, ray.cluster_resources(), nodes)
        yield


def _connect(address: str, options: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError) as error:
        raise PlacementError(
            f"cluster.address: no Ray cluster answers at '{address}' ({str(error).splitlines()[0]}); "
            "start one with `ray start --head`, or set cluster.address to null for a local one"
        ) from error


def _start_local(config: ClusterConfig, plan: PlacementPlan, options: dict[str, Any]) -> None:
    # On loopback only, and without a token: a token would be left behind in the user's home.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(
            num_cpus=config.num_cpus or max(os.cpu_count() or 1, plan.num_cpus),
            include_dashboard=config.dashboard,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            # Ray's own niceness of 15 makes a run crawl on a machine that does anything else besides.
            _system_config={"worker_niceness": 0},
            **options,
        )
    except Exception as error:  # Ray raises plain Exceptions here, the same for a full disk and for a busy machine
        reason = str(error).splitlines()[0]
        raise RunError(
            f"Ray did not start on this machine: {reason} It gives up after half a minute: is the machine very busy, "
            "or its disk or memory full?"
        ) from error


@contextmanager
def _short_lived_folder(logs_dir: Path) -> Iterator[str]:
    """A folder for a local Ray, with a short name because of Unix sockets; of it only the logs are kept."""
    with tempfile.TemporaryDirectory(prefix="bicot-ray-", ignore_cleanup_errors=True) as folder:
        try:
            yield folder
        finally:
            logs = Path(folder) / "session_latest" / "logs"
            if logs.is_dir():
                shutil.copytree(logs, logs_dir / "ray", ignore_dangling_symlinks=True, dirs_exist_ok=True)
