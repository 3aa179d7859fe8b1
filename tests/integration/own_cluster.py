"""A Ray cluster that a test may break, in a process of its own: the tests share one Ray that must stay as it is.

run_story(module, directory)   in the test: that process, to its end; returns what it reported
head_process(...)              a head of its own by Ray's command, for what the library does not start
own_cluster(...)               in that process: a head node, to which nodes can be added, and the connection to it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from cluster.session.stop_signals import end_processes
from tests.integration.launcher import wait_until
from tests.short_folder import short_folder

PROJECT_ROOT = Path(__file__).resolve().parents[2]
REPORT = "report.json"
HEAD_TIMEOUT_S = 200.0


def run_story(module: str, directory: Path, *arguments: str, timeout_s: float) -> dict[str, Any]:
    """Run `python -m module directory arguments`, which leaves its report there."""
    command = [sys.executable, "-m", module, str(directory), *arguments]
    finished = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    told: dict[str, Any] = json.loads((directory / REPORT).read_text())
    return told


@contextmanager
def head_process(folder: Path, environment: Mapping[str, str], *options: str) -> Iterator[None]:
    """A Ray head on loopback as `ray start --head --block` makes it, ended with all its processes.

    folder: for what it prints, head.txt. options: of `ray start`, beside those of the head itself.
    """
    printed = folder / "head.txt"
    ray_command = str(Path(sys.executable).with_name("ray"))
    command = [ray_command, "start", "--head", "--block", "--node-ip-address=127.0.0.1", *options]
    with printed.open("wb") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: "--block" in printed.read_text(), HEAD_TIMEOUT_S, printed.read_text, head)
        yield
    finally:
        if head.poll() is None:
            processes = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            head.wait(60)
            end_processes(processes, patience_s=20)


@contextmanager
def own_cluster(system_config: dict[str, Any], **head: Any) -> Iterator[Cluster]:
    """head: options of its node."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with short_folder() as temporary:
        # Where Ray leaves the address for others to find: nobody is to find this one.
        os.environ["RAY_TMPDIR"] = str(temporary)
        (temporary / "ray").mkdir()
        cluster = Cluster()
        system = {"worker_niceness": 0, "prestart_worker_first_driver": False, **system_config}
        cluster.add_node(**head, include_dashboard=False, temp_dir=str(temporary), _system_config=system)
        environment = {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}
        ray.init(
            address=cluster.address,
            runtime_env={"env_vars": environment},
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
