"""A run on a cluster that Ray's own autoscaler grows and shrinks, for `test_autoscaling.py`.

    python -m tests.integration.autoscaled_run DIRECTORY 1|2

    the head has no CPU      ─► the run's first need brings a node: learner, reward, rollout-0
    rollout bounds the speed ─► the pool asks for rollout-1, the autoscaler brings another node, which draws its part
    a step takes long        ─► the pool shrinks, the node is idle, and the autoscaler takes it away; the run goes on

The nodes are raylets here, started by Ray's own provider for tests. The autoscaler, of that version, is the real one.
Leaves what came of it as JSON in DIRECTORY/report.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from cluster.session.stop_signals import end_processes
from configs.local.ports import free_port
from tests.integration.own_cluster import PROJECT_ROOT, REPORT, head_process
from tests.integration.training import Outcome, RecordingLog, run_tree, train

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
HEAD_TYPE = "ray.head.default"
"""As the provider calls it."""
IDLE_S = 6.0
WAIT_S = 180.0


class Story:
    """What the load does, and how many nodes there are meanwhile."""

    def __init__(self) -> None:
        self.num_nodes: dict[str, int] = {}
        self._deadline = time.monotonic() + WAIT_S
        self._last_step = 0

    async def act(self, log: RecordingLog, event: str, number: int) -> None:
        """Called after each step."""
        if event != "step":
            return
        assert log.run is not None
        drawers = {group.rollout.worker_id for groups in log.groups.values() for group in groups}
        if "grown" not in self.num_nodes and len(drawers) == 2:
            self.num_nodes["grown"] = await nodes_now()
            # The learner takes long now: rollout workers have drawn what they may, and are idle.
            async with asyncio.timeout(WAIT_S):
                while await nodes_now() == self.num_nodes["grown"]:
                    await asyncio.sleep(0.5)
            self.num_nodes["shrunk"] = await nodes_now()
            self._last_step = number + 2
        if number == self._last_step or (self._last_step == 0 and time.monotonic() > self._deadline):
            log.run.stop()


async def nodes_now() -> int:
    return await asyncio.to_thread(num_worker_nodes)


def num_worker_nodes() -> int:
    """Nodes that have CPUs, and so not the head."""
    return sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0)


@contextmanager
def autoscaled_cluster(version: str) -> Iterator[str]:
    """A head with that version of the autoscaler; yields its address. Its nodes end with it."""
    with tempfile.TemporaryDirectory(prefix="bt-", ignore_cleanup_errors=True) as temporary:
        port, folder = free_port(), Path(temporary)
        config = folder / "cluster.yaml"
        config.write_text(yaml.safe_dump(cluster_tree(f"127.0.0.1:{port}")))
        (folder / "tmp").mkdir()
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": temporary,
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": str(int(version == "2")),
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
            "RAY_worker_niceness": "0",
        }
        options = [
            *("--num-cpus=0", f"--port={port}", f"--temp-dir={folder / 'tmp'}", "--include-dashboard=False"),
            *(f"--object-store-memory={80 << 20}", f"--autoscaling-config={config}"),
        ]
        try:
            with head_process(folder, environment, *options):
                yield f"127.0.0.1:{port}"
        finally:
            end_processes(raylets_of(folder), patience_s=20)


def raylets_of(folder: Path) -> list[psutil.Process]:
    """What the provider has started: it leaves its nodes without a parent that would end them."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def cluster_tree(gcs_address: str) -> dict[str, Any]:
    """A file for Ray's autoscaler, whose nodes are raylets of this machine."""
    return {
        "cluster_name": "autoscaled",
        "max_workers": 3,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": gcs_address,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "auth": {},
        "docker": {},
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 80 << 20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 3,
            },
        },
        **{name: {} for name in ("file_mounts",)},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{name: [] for name in ("initialization_commands", "setup_commands", "head_setup_commands")},
        **{name: [] for name in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
        "file_mounts_sync_continuously": False,
    }


def config_tree(directory: Path) -> dict[str, Any]:
    """Learner, reward and one rollout worker fill a node of one CPU; another worker needs another node."""
    return run_tree(
        "autoscaled",
        directory,
        run={"steps": 5000, "start_timeout_s": WAIT_S},
        algorithm={"groups_per_step": 4},
        rollout={"num_workers": {"min": 1, "max": 2}, "cpus_per_worker": 0.5, "max_groups_per_worker": 4},
        learner={"micro_batch_size": 4, "lr": 1e-3, "cpus_per_rank": 0.3},
        samples={"every_steps": 5000},
        checkpoint={"every_steps": 5000},
        cluster={
            "autoscaling": True,
            "heartbeat_s": 2.0,
            "heartbeat_timeout_s": 30.0,
            "scaling": {"every_s": 0.2, "grow_after_s": 1.0, "shrink_after_s": 4.0},
        },
    )


def report(outcome: Outcome, story: Story) -> dict[str, Any]:
    groups = [group for step in sorted(outcome.log.groups) for group in outcome.log.groups[step]]
    return {
        "error": None if outcome.error is None else repr(outcome.error),
        "status": None if outcome.summary is None else outcome.summary.status,
        "num_nodes": story.num_nodes,
        "sequences": [group.rollout.request.sequence for group in groups],
        "workers": sorted({group.rollout.worker_id for group in groups}),
        "failures": [reason for _, reason in outcome.log.failures],
        "notes": outcome.log.notes,
    }


def main(directory: Path, version: str) -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with autoscaled_cluster(version) as address:
        environment = {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}
        ray.init(address=address, runtime_env={"env_vars": environment}, log_to_driver=False, logging_level="ERROR")
        story = Story()
        try:
            outcome = asyncio.run(train(config_tree(directory), story.act))
            (directory / REPORT).write_text(json.dumps(report(outcome, story)))
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
