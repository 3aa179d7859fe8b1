"""A run whose Ray loses its GCS, for `test_gcs_death.py`.

    python -m tests.integration.gcs_run DIRECTORY STORAGE

    step 2 made   the GCS is killed; its tables lie in STORAGE: redis, or rocksdb (files on the head's disk)
    step 4 made   without a GCS. It is started again as a supervisor would: same command line, same environment
    step 5 made   rollout-0 is killed by its name: both the name and the replacement need what the tables held
    step 8 made   the end

Leaves what came of it as JSON in DIRECTORY/report.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import ray

from cluster.session import PrivateRedis
from configs.local.ports import free_port
from tests.integration.own_cluster import REPORT, own_cluster
from tests.integration.training import Outcome, RecordingLog, run_tree, train

REDIS, ROCKSDB = "redis", "rocksdb"
NUM_STEPS = 8
END_S = 20.0
UNTIL_CLOSED = 'trap "" TERM; "$@" & cat; kill -9 $!'
"""Shell: run a command until standard input is closed, as it is when this process ends, however that comes about."""


class Story:
    """What happens to the GCS while the run goes on."""

    def __init__(self) -> None:
        self._command: list[str] = []
        self._environment: dict[str, str] = {}
        self._is_gone = False
        self._successor: subprocess.Popen[bytes] | None = None
        self.steps_without: list[int] = []
        """Steps that were made while there was no GCS."""

    async def act(self, log: RecordingLog, event: str, number: int) -> None:
        """Called after each step."""
        if event != "step":
            return
        if self._is_gone:
            self.steps_without.append(number)
        if number == 2:
            self._kill()
        elif number == 4:
            command = ["sh", "-c", UNTIL_CLOSED, "sh", *self._command]
            self._successor = subprocess.Popen(command, env=self._environment, stdin=subprocess.PIPE)
            self._is_gone = False
        elif number == 5:
            ray.kill(ray.get_actor(f"{log.directory.name}-rollout-0"))

    def end(self) -> None:
        """End what this story has started."""
        if self._successor is not None:
            assert self._successor.stdin is not None
            self._successor.stdin.close()
            self._successor.wait(END_S)

    def _kill(self) -> None:
        (gcs,) = [child for child in psutil.Process().children(recursive=True) if child.name() == "gcs_server"]
        self._command, self._environment = gcs.cmdline(), gcs.environ()
        gcs.kill()
        self._is_gone = True


def config_tree(directory: Path) -> dict[str, Any]:
    return run_tree(
        "without-gcs",
        directory,
        run={"steps": NUM_STEPS},
        samples={"every_steps": NUM_STEPS},
        checkpoint={"every_steps": NUM_STEPS},
    )


def report(outcome: Outcome, story: Story) -> dict[str, Any]:
    counts = outcome.snapshot.group_counts if outcome.snapshot is not None else {}
    groups = [group for step in sorted(outcome.log.groups) for group in outcome.log.groups[step]]
    return {
        "error": None if outcome.error is None else repr(outcome.error),
        "status": None if outcome.summary is None else outcome.summary.status,
        "steps": [row["step"] for row in outcome.rows],
        "versions": [row["weight_version"] for row in outcome.rows],
        "steps_without": story.steps_without,
        "sequences": [group.rollout.request.sequence for group in groups],
        "counts": {state: number for state, number in counts.items() if number},
        "last_workers": sorted({group.rollout.worker_id for group in groups[-1:]}),
        "notes": outcome.log.notes,
    }


@contextmanager
def tables_in(storage: str, directory: Path) -> Iterator[dict[str, Any]]:
    """Sets Ray's variables for its tables; yields the options of `ray.init` that belong to them."""
    # For so long Ray's processes, this one included, wait for a GCS before they end themselves.
    os.environ.update({"RAY_gcs_rpc_server_reconnect_timeout_s": "120"})
    if storage == ROCKSDB:
        os.environ.update({"RAY_gcs_storage": ROCKSDB, "RAY_gcs_storage_path": str(directory / "tables")})
        yield {}
        return
    with PrivateRedis(directory / "ray-redis") as redis:
        address = urlsplit(redis.url)
        where = f"{address.hostname}:{address.port}"
        os.environ.update({"RAY_REDIS_ADDRESS": where, "RAY_external_storage_namespace": directory.name})
        yield {"redis_password": address.password}


def main(directory: Path, storage: str) -> None:
    story = Story()
    with tables_in(storage, directory) as of_tables:
        head = {"num_cpus": 2, "object_store_memory": 80 << 20, **of_tables}
        try:
            # A fixed port, so that those who knew the first GCS find the second.
            with own_cluster({}, gcs_server_port=free_port(), **head):
                outcome = asyncio.run(train(config_tree(directory), story.act))
                (directory / REPORT).write_text(json.dumps(report(outcome, story)))
        finally:
            story.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
