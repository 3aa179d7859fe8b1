"""What a run tells reaches its files and its trackers, also at its end, without Ray and Redis."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

from cluster.report import read_run
from cluster.reports import Progress, RunLog
from cluster.reports.metrics import RunSummary
from cluster.reports.metrics_file import MetricsWriter
from cluster.reports.timeline import RUN, read_timeline
from cluster.state import Checkpoints, Registry, RunDirectory
from cluster.training.run_finish import leave_behind
from configs.load import load_config
from tests.runs import row


async def test_the_end_of_a_run_leaves_report_timeline_and_trackers_behind(tmp_path: Path) -> None:
    overrides = [f"run.dir={tmp_path}", "watching.trackers=[tensorboard, mlflow]", "watching.metrics=false"]
    config = load_config("configs/shapes_cpu.yaml", overrides)
    directory = RunDirectory.create(config)
    output = StringIO()
    with MetricsWriter(directory.metrics_path) as metrics, Progress(80, output) as progress:
        checkpoints = Checkpoints(directory.checkpoints_dir, config.checkpoint, progress.note)
        log = RunLog(config, directory, Registry("redis://localhost:1", "trial"), progress, metrics, checkpoints)
        log.activity.phase("waiting")
        log.write(row(1))
        log.activity.phase("learning")
        log.note("rollout-0 died: out of memory")
        await leave_behind(log, RunSummary("stopped", 1, 8, 2.0, 4.0, {}, 0.4, 0.5, None))
    assert list((directory.path / "trackers" / "tensorboard").glob("events.*"))
    spans = [event["name"] for event in read_timeline(directory.timeline_path) if event["ph"] == "X"]
    assert spans == ["starting", "waiting"]
    assert all(event["pid"] == RUN for event in json.loads(directory.timeline_path.read_text()) if event["ph"] == "i")
    view = read_run(directory.path)
    assert (view.status, view.step) == ("stopped", 1)
    assert "rollout-0 died: out of memory" in directory.report_path.read_text()
    try:
        import mlflow  # noqa: F401
    except ImportError:
        assert output.getvalue().count("tracker mlflow cannot be started") == 1
