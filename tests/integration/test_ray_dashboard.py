"""The live page in the Metrics tab of Ray's own dashboard, looked at by a real browser."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cluster.watch import Watched, serve
from configs.local.ports import free_port
from tests.browser import CHROMIUM, browser
from tests.integration.own_cluster import head_process
from tests.runs import make_run
from tests.short_folder import short_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.proof,
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
]


def test_the_page_is_in_the_metrics_tab(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    dashboard_port = free_port()
    with serve(Watched([directory.path]), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        page = f"http://127.0.0.1:{server.server_address[1]}"
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_GRAFANA_HOST": page, "RAY_PROMETHEUS_HOST": page}
        options = [
            *("--num-cpus=1", f"--port={free_port()}", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-port={dashboard_port}", f"--object-store-memory={100 << 20}"),
            *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
        ]
        try:
            with (
                short_folder() as folder,
                head_process(folder, environment, *options, f"--temp-dir={folder}"),
                browser(tmp_path) as opened,
            ):
                opened.size(1280, 900)
                opened.load(f"http://127.0.0.1:{dashboard_port}/#/metrics")
                opened.wait_for("document.querySelector('iframe') !== null")
                opened.wait_for("document.querySelectorAll('svg.chart').length >= 8", page)
                assert opened.ask("document.getElementById('top').textContent.includes('12 of 40')", page)
                opened.screenshot(tmp_path / "metrics.png")
        finally:
            server.shutdown()
            thread.join(10)
