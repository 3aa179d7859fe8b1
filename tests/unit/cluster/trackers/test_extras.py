"""The trackers that are extras, each where it is installed: offline, and over two lives of a run."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from cluster.trackers import TrackedPicture, TrackedRun, Trackers

KEY = "trial-0123abcd"


def two_lives(name: str, folder: Path) -> None:
    """Three steps, and two more after the run has gone on from the second one."""
    config = {"run": {"steps": 9, "seed": 0}, "rewards": [{"name": "shapes"}]}
    picture = TrackedPicture(np.full((64, 64, 3), 200, np.uint8), "a red star | 0.50")
    for first, last in ((1, 3), (3, 4)):
        trackers = Trackers([name], TrackedRun("trial", KEY, folder / "trackers", config))
        trackers.rewind(first - 1)
        for step in range(first, last + 1):
            trackers.metrics(step, {"kl": 0.1 * step, "reward_correlation/a~b": 0.5, "time/step_s": 1.0})
        trackers.pictures(last, [picture, picture])
        trackers.summary({"status": "finished", "steps": last, "error": None, "heldout_rewards": {"a": {"after": 0.5}}})
        trackers.close(60)
        assert trackers.take_warnings() == []


def test_wandb_keeps_both_lives_offline_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    two_lives("wandb", tmp_path)
    assert list((tmp_path / "trackers" / "wandb").glob(f"offline-run-*-{KEY}/run-{KEY}.wandb"))
    assert list((tmp_path / "trackers" / "wandb").glob("offline-run-*/files/media/images/samples*.png"))


def test_trackio_keeps_both_lives_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    two_lives("trackio", tmp_path)
    with sqlite3.connect(tmp_path / "trackio" / "bicot.db") as database:
        rows = database.execute("select run_name, step from metrics").fetchall()
    assert {name for name, _ in rows} == {KEY}
    assert {1, 2, 3, 4} <= {step for _, step in rows}
    assert list((tmp_path / "trackio" / "media").rglob("*.png"))


def test_mlflow_keeps_both_lives_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    two_lives("mlflow", tmp_path)
    (run,) = [path for path in (tmp_path / "mlruns").glob("*/*") if (path / "metrics").is_dir()]
    steps = [line.split()[2] for line in (run / "metrics" / "kl").read_text().splitlines()]
    assert steps == ["1", "2", "3", "3", "4"]
    assert (run / "metrics" / "reward_correlation" / "a_b").is_file()
