"""metrics.jsonl, summary.json and curves.png."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.reports import read_metrics
from cluster.reports.curves import EvaluationPoint, draw_curves, evaluations_during, moving_mean
from cluster.reports.metrics import (
    METRICS,
    MetricsRow,
    RewardChange,
    RunSummary,
    critical_path_of,
    first_and_last_reward,
    slowest_reward,
    write_summary,
)
from cluster.reports.metrics_file import MetricsWriter
from cluster.training.run_evaluation import drift_metrics
from configs.errors import DataError

KEYS_OF_THE_ISSUE = (
    "step weight_version reward/mean kl loss staleness/mean staleness/max "
    "time/rollout_s time/reward_s time/learn_s time/sync_s images_per_s"
)


def row(step: int) -> dict[str, float]:
    return {
        "step": step,
        "weight_version": step,
        "reward/mean": 0.5 + 0.01 * step,
        "reward/shapes": 0.25,
        "kl": 0.001 * step,
        "entropy/cot": 0.4,
        "entropy/image": 1.9,
        "staleness/mean": 0.5,
        "staleness/max": 1,
        "images_per_s": 40.0,
        "time/learn_s": 1.5,
        "time/wait_s": 0.25,
        "time/sync_s": 0.1,
        "time/rollout_s": 2.0,
    }


def write_rows(path: Path, num_steps: int) -> None:
    with MetricsWriter(path) as writer:
        for step in range(1, num_steps + 1):
            writer.write(row(step))


def test_every_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(row(1))
        assert read_metrics(path) == [row(1)]
        writer.write(row(2))
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_rewound_file_goes_on_after_the_step_and_holds_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, 5)
    with path.open("a") as file:
        file.write('{"step": 6, "wei')  # torn: the launcher was killed
    with MetricsWriter(path) as writer:
        writer.rewind(3)
        assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
        writer.write(row(4))
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]


def test_what_is_not_finite_becomes_null_and_numpy_numbers_become_plain(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write({"step": 1, "kl": math.nan, "loss": math.inf, "reward/mean": float(np.float32(0.5)), "lr": 1e-6})
        writer.write({"step": 2, "kl": np.float32(0.25)})
    first, second = read_metrics(path)
    assert first == {"step": 1, "kl": None, "loss": None, "reward/mean": 0.5, "lr": 1e-6}
    assert second == {"step": 2, "kl": 0.25}
    assert "NaN" not in path.read_text()


def test_a_key_that_is_not_documented_is_refused(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer, pytest.raises(ValueError, match="rewrd/mean"):
        writer.write({"step": 1, "rewrd/mean": 0.5})


def test_the_keys_that_users_rely_on_are_documented() -> None:
    assert set(KEYS_OF_THE_ISSUE.split()) <= METRICS.keys()


def test_a_torn_last_line_is_skipped_by_readers_and_dropped_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, 2)
    with path.open("a") as file:
        file.write('{"step": 3, "rew')
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2]
    with MetricsWriter(path) as writer:
        writer.write(row(3))
    assert read_metrics(path) == [row(1), row(2), row(3)]


@pytest.mark.parametrize("line", ["{'step': 2}", "[1]"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
        read_metrics(path)


def test_the_slowest_reward_is_the_one_of_the_fewest_pictures_a_second(tmp_path: Path) -> None:
    rows: list[dict[str, float | None]] = [
        {"reward/hps/images_per_s": 10.0, "reward/orm/images_per_s": 4.0, "images_per_s": 1.0},
        {"reward/hps/images_per_s": 20.0, "reward/orm/images_per_s": None},
    ]
    slowest = slowest_reward(rows)
    assert slowest == ("orm", 4.0)
    summary = RunSummary("finished", 2, 8, 1.0, 8.0, {}, 0.1, 0.2, None, slowest_reward=slowest)
    assert summary.to_json()["slowest_reward"] == {"name": "orm", "images_per_s": 4.0}
    assert slowest_reward([{"step": 1.0}]) is None


def test_first_and_last_reward_are_means_over_a_tenth_of_the_steps() -> None:
    rows: list[dict[str, float | None]] = [{"step": step, "reward/mean": float(step)} for step in range(1, 31)]
    assert first_and_last_reward(rows) == (2.0, 29.0)
    assert first_and_last_reward(rows[:3]) == (1.0, 3.0)
    assert first_and_last_reward([{"step": 1, "reward/mean": None}]) == (None, None)


def test_the_summary_spreads_its_evaluations_and_replaces_the_file_whole(tmp_path: Path) -> None:
    summary = RunSummary(
        status="finished",
        steps=100,
        images=12800,
        wall_s=400.0,
        images_per_s=32.0,
        evaluation={
            "heldout": RewardChange(0.5, 0.65, {"hps": (0.25, None)}, {"shapes": (0.2, 0.7)}, 192),
            "unseen_pairs": RewardChange(0.4, math.nan),
        },
        reward_first=0.5,
        reward_last=0.7,
        checkpoint="/runs/trial/checkpoints/step_000100",
        groups_failed=3,
    )
    path = tmp_path / "summary.json"
    path.write_text("an older one")
    write_summary(path, summary)
    assert json.loads(path.read_text()) == {
        "status": "finished",
        "steps": 100,
        "images": 12800,
        "wall_s": 400.0,
        "images_per_s": 32.0,
        "heldout_reward_before": 0.5,
        "heldout_reward_after": 0.65,
        "heldout_rewards": {"hps": {"before": 0.25, "after": None}},
        "heldout_perfect": {"shapes": {"before": 0.2, "after": 0.7}},
        "unseen_pairs_reward_before": 0.4,
        "unseen_pairs_reward_after": None,
        "unseen_pairs_rewards": {},
        "unseen_pairs_perfect": {},
        "reward_first": 0.5,
        "reward_last": 0.7,
        "slowest_reward": None,
        "critical_path": None,
        "checkpoint": "/runs/trial/checkpoints/step_000100",
        "groups_failed": 3,
        "groups_given_up": 0,
        "error": None,
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_moving_mean_equals_the_mean_of_each_window() -> None:
    values = np.random.default_rng(0).normal(size=23)
    values[[4, 11]] = np.nan
    expected = [np.nanmean(values[max(0, i - 2) : i + 3]) for i in range(len(values))]
    np.testing.assert_allclose(moving_mean(values, 5), expected, atol=1e-12)
    assert moving_mean(values[:2], 5).shape == (2,)


def test_curves_show_the_steps_and_the_evaluations(tmp_path: Path) -> None:
    metrics, without, with_marks = tmp_path / "metrics.jsonl", tmp_path / "without.png", tmp_path / "with.png"
    write_rows(metrics, 30)
    draw_curves(read_metrics(metrics), without)
    draw_curves(
        read_metrics(metrics), with_marks, [EvaluationPoint("heldout", 0, 0.5), EvaluationPoint("heldout", 30, 0.7)]
    )
    first, second = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (without, with_marks))
    assert first.shape == second.shape
    different = np.abs(first - second).sum(axis=2) > 0
    width = first.shape[1]
    assert different[:, : width // 3].any(), "the marks are in the chart of the reward"
    assert not different[:, -width // 2 :].any()


@pytest.mark.parametrize("content", ["", '{"step": 1, "reward/mean": 0.5, "staleness/max": 0}\n', '{"step": 1}\n'])
def test_curves_of_a_run_that_hardly_began_are_drawn_too(tmp_path: Path, content: str) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(content)
    draw_curves(read_metrics(metrics), tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1560, 832)


def test_what_was_evaluated_between_the_steps_is_found_in_their_metrics():
    rows = [
        {"step": 1, "reward/mean": 0.5},
        {"step": 2, "evaluation/heldout": 0.4, "evaluation/heldout/change": 0.1, "evaluation/heldout/shapes": 0.4},
        {"step": 4, "evaluation/heldout": None, "evaluation/pairs": 0.3},
    ]
    assert evaluations_during(rows) == [EvaluationPoint("heldout", 2, 0.4), EvaluationPoint("pairs", 4, 0.3)]


def test_drift_is_told_of_each_reward_that_applies():
    change = RewardChange(0.5, 0.75, {"shapes": (0.25, 0.5), "ocr": (None, None), "lost": (0.5, None)})
    assert drift_metrics("heldout", change) == {
        "evaluation/heldout": 0.75,
        "evaluation/heldout/change": 0.25,
        "evaluation/heldout/shapes": 0.5,
        "evaluation/heldout/shapes/change": 0.25,
    }


class FullDisk:
    """An open file to which only so many bytes more may be written."""

    def __init__(self, file: Any, room: int) -> None:
        self._file = file
        self.room = room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written: int = self._file.write(data[: self.room])
        self.room -= written
        return written

    def fileno(self) -> int:
        number: int = self._file.fileno()
        return number

    def close(self) -> None:
        self._file.close()


def test_what_a_full_disk_does_not_take_is_written_with_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(row(1))
        disk = FullDisk(writer._file, room=30)
        writer._file = disk  # type: ignore[assignment]
        for step in (2, 3):
            with pytest.raises(OSError, match="No space left"):
                writer.write(row(step))
            assert path.read_text().count("\n") == 1, "not half a line of it"
            disk.room = 30
        disk.room = 10_000
        writer.write(row(4))
        assert read_metrics(path) == list(writer.rows) == [row(1), row(2), row(3), row(4)]


def test_a_folder_that_is_removed_while_a_run_writes_is_made_again_with_all_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    with MetricsWriter(path) as writer:
        assert writer.write(row(1))
        shutil.rmtree(path.parent)
        assert not writer.write(row(2))
        assert writer.write(row(3))
        path.unlink()
        path.write_text("somebody else's\n")
        assert not writer.write(row(4))
    assert read_metrics(path) == [row(step) for step in (1, 2, 3, 4)]


def test_rewinding_reads_no_file_and_writes_one_only_for_steps_to_drop(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, 4)
    with MetricsWriter(path) as writer:
        before = path.stat().st_ino
        writer.rewind(4)
        assert path.stat().st_ino == before
        writer.rewind(2)
        assert [entry["step"] for entry in writer.rows] == [1, 2]
        writer.write(row(3))
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2, 3]


def test_a_rewind_that_the_disk_does_not_take_is_made_up_for_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, 4)
    with MetricsWriter(path) as writer:
        with monkeypatch.context() as disk:
            disk.setattr(Path, "write_text", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "full")))
            with pytest.raises(OSError, match="full"):
                writer.rewind(2)
        writer.write(row(3))
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2, 3]


def test_the_critical_path_of_a_run_is_weighed_by_time_and_leaves_out_steps_that_do_not_know_it() -> None:
    parts = dict.fromkeys((f"critical/{part}_s" for part in ("rollout", "rewards", "queue", "sync", "other")), 0.0)
    rows: list[MetricsRow] = [
        {"step": 1.0},
        {**parts, "critical/learn_s": 1.0, "busy/rollout": 0.5, "busy/rewards": 0.0, "busy/learner": 1.0},
        {
            **parts,
            "critical/rollout_s": 2.0,
            "critical/learn_s": 1.0,
            "busy/rollout": 1.0,
            "busy/rewards": 0.2,
            "busy/learner": 0.33,
        },
    ]
    path = critical_path_of(rows)
    assert path is not None
    assert (path.shares["rollout"], path.shares["learn"], path.shares["queue"]) == (0.5, 0.5, 0.0)
    assert path.efficiency == pytest.approx((0.5 * 1 + 1.0 * 3) / 4)
    assert path.describe() == "rollout 50%, learn 50%; pipeline efficiency 0.88"
    assert critical_path_of(rows[:1]) is None
