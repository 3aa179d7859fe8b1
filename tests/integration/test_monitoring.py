"""A real Prometheus scrapes a real run: every query of every panel has data, and the end of the run raises an alert."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cluster.boards.alerts import rules_yaml
from cluster.boards.panels import ROWS
from configs.local.ports import free_port
from tests.integration.training import RecordingLog, run_tree, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.proof,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is missing: apt-get install prometheus"),
]
NAME = "monitored"
CHANNEL = "tests.integration.rewards:ChannelReward"
PATIENCE_S = 150.0
NEEDS_OF_OTHERS = {"a GPU"}
"""What this run has not."""


class Prometheus:
    """One that scrapes the agents of the Ray that this process is connected to."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def query(self, expr: str) -> list[dict[str, Any]]:
        """What an instant query returns; raises for an expression that Prometheus does not take."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result

    def has_data(self, expr: str) -> bool:
        return any(math.isfinite(float(series["value"][1])) for series in self.query(expr))


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    port = free_port()
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": targets}]}],
    }
    (folder / "alerts.yaml").write_text(rules_yaml())
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(20)


def queries() -> dict[str, str]:
    """Expression with this run's name -> panel."""
    variables = {"$run": NAME, "$SessionName": ".*", "$Cluster": ".*", "$__rate_interval": "1m"}
    found = {}
    for row in ROWS:
        for panel in row.panels:
            for query in panel.queries:
                expr = query.expr
                for variable, value in variables.items():
                    expr = expr.replace(variable, value)
                if query.needs not in NEEDS_OF_OTHERS:
                    found[expr] = f"{row.title} / {panel.title}"
    return found


async def becomes(is_so: Callable[[], bool]) -> bool:
    """Ask now and then, from a thread, since the run goes on meanwhile. False when patience has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while not await asyncio.to_thread(is_so):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(2)
    return True


def asking(server: Prometheus, missing: dict[str, str]) -> Callable[[RecordingLog, str, int], Awaitable[None]]:
    """Ends the run when every query has returned data, or patience has ended. `missing` holds those that have not."""
    watching: list[asyncio.Task[None]] = []

    def all_have_data() -> bool:
        for expr in [expr for expr in missing if server.has_data(expr)]:
            del missing[expr]
        return not missing

    async def watch(log: RecordingLog) -> None:
        await becomes(all_have_data)
        assert log.run is not None
        log.run.stop()

    async def act(log: RecordingLog, event: str, number: int) -> None:
        if event == "step" and not watching:
            watching.append(asyncio.create_task(watch(log)))

    return act


def firing(server: Prometheus) -> set[str]:
    alerts = server.query(f'ALERTS{{alertstate="firing",run="{NAME}"}}')
    return {alert["metric"]["alertname"] for alert in alerts}


async def test_every_panel_of_the_board_has_data_and_a_run_that_ended_early_raises_its_alert(tmp_path: Path) -> None:
    tree = run_tree(
        NAME,
        tmp_path / "runs",
        run={"steps": 100_000},
        rollout={"engine": "vllm"},
        data={"evaluation": {"heldout": "shapes:heldout:1"}, "num_evaluation_prompts": 1, "evaluate_every_steps": 2},
        rewards=[
            {"name": name, "kind": CHANNEL, "options": {"channel": channel}, "cpus_per_replica": 0.1}
            for channel, name in enumerate(("red", "green"))
        ],
    )
    missing = queries()
    with prometheus(tmp_path) as server:
        outcome = await train(tree, act=asking(server, missing))
        assert missing == {}, "panels without data"
        assert outcome.summary is not None
        assert outcome.summary.status == "stopped"
        assert "BicotRunEnded" not in firing(server)
        # Ray's agent drops the launcher's gauges 20 s after they were told last.
        assert await becomes(lambda: "BicotRunEnded" in firing(server))
