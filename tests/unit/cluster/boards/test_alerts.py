"""Each alert by promtool's unit tests: it fires where it should, and is silent where all is well."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.boards.__main__ import ALERTS_NAME, FOLDER
from cluster.boards.alerts import ALERTS, rules_yaml

Series = dict[str, str]
BY_NAME = {alert.name: alert for alert in ALERTS}
R = 'run="a"'


@dataclass(frozen=True)
class Case:
    """What Prometheus has scraped once a minute, and the alert's labels and value at `at`; None: it is silent."""

    alert: str
    series: Series
    at: str
    labels: dict[str, str] | None = None
    value: str = ""


def stuck(step_s: int) -> Series:
    """A run whose last step was made at 0 s, and took so long."""
    return {
        f"ray_bicot_last_step_unixtime{{{R}}}": "0x120",
        f"ray_bicot_time_step_s{{{R}}}": f"{step_s}x120",
    }


def ended(step: int, alive: str) -> Series:
    return {
        f"ray_bicot_alive_unixtime{{{R}}}": alive,
        f"ray_bicot_step{{{R}}}": f"{step}x5 _x60",
        f"ray_bicot_steps_planned{{{R}}}": "10x5 _x60",
    }


def waiting(calls: int, idle_share: float) -> Series:
    return {
        f'ray_bicot_pool_calls_waiting{{{R},pool="reward-hps"}}': f"{calls}x60",
        f'ray_bicot_phase_seconds_total{{{R},phase="waiting"}}': f"0+{60 * idle_share}x60",
    }


def disk(free: str) -> Series:
    return {f"ray_bicot_disk_free_bytes{{{R}}}": free, f"ray_bicot_disk_size_bytes{{{R}}}": "1000x300"}


RUN = {"run": "a"}
CASES = [
    Case("BicotRunEnded", ended(7, "0+60x5 _x60"), "11m", RUN),
    Case("BicotRunEnded", ended(10, "0+60x5 _x60"), "11m"),  # it made all its steps
    Case("BicotRunEnded", ended(7, "0+60x30"), "11m"),  # it lives
    Case("BicotRunEnded", ended(7, "0+60x5 _x60"), "40m"),  # long ago
    Case("BicotRunStalled", stuck(60), "20m", RUN, "20m 0s"),
    Case("BicotRunStalled", stuck(60), "14m"),
    Case("BicotRunStalled", stuck(600), "40m"),  # its steps are long
    Case("BicotRunStalled", {f"ray_bicot_last_step_unixtime{{{R}}}": "0x120"}, "70m", RUN, "1h 10m 0s"),
    Case("BicotRunStalled", {f"ray_bicot_last_step_unixtime{{{R}}}": "0x120"}, "50m"),  # it starts
    Case("BicotRewardFalling", {f"ray_bicot_reward_mean{{{R}}}": "0.8x120 0.5x120"}, "200m", RUN, "300m"),
    Case("BicotRewardFalling", {f"ray_bicot_reward_mean{{{R}}}": "0.5+0.001x240"}, "200m"),
    Case("BicotRewardFalling", {f"ray_bicot_reward_mean{{{R}}}": "0.6 0.4 " * 120}, "200m"),  # only noise
    Case("BicotKLExploding", {f"ray_bicot_kl{{{R}}}": "0.01x100 0.5x20"}, "110m", RUN, "500m"),
    Case("BicotKLExploding", {f"ray_bicot_kl{{{R}}}": "1.5x20"}, "10m", RUN, "1.5"),
    Case("BicotKLExploding", {f"ray_bicot_kl{{{R}}}": "0+0.001x120"}, "110m"),
    *(
        Case(
            "BicotParityBroken",
            {
                f"ray_bicot_parity_mean_abs_{tokens}{{{R}}}": f"{difference}x10",
                f'ray_bicot_parity_limit{{{R},tokens="{tokens}"}}': "0.05x10",
            },
            "5m",
            *labels,
        )
        for tokens in ("cot", "image")
        for difference, labels in ((0.01, ()), (0.1, (RUN, "2")))
    ),
    *(
        Case(
            "BicotPoolIncomplete",
            {
                f'ray_bicot_pool_size{{{R},pool="rollout"}}': "4x60",
                f'ray_bicot_workers{{{R},pool="rollout",state="READY"}}': f"{ready}x60",
                f'ray_bicot_workers{{{R},pool="rollout",state="JOINING"}}': f"{4 - ready}x60",
            },
            "20m",
            *labels,
        )
        for ready, labels in ((4, ()), (2, ({**RUN, "pool": "rollout"}, "2")))
    ),
    *(
        Case(
            "BicotWorkersDying",
            {f'ray_bicot_worker_deaths_total{{{R},pool="rollout"}}': f"0+{a_minute}x60"},
            "40m",
            *labels,
        )
        for a_minute, labels in ((0.02, ()), (0.2, ({**RUN, "pool": "rollout"}, "6")))
    ),
    Case("BicotRewardsBound", waiting(3, 0.8), "20m", {**RUN, "pool": "reward-hps"}, "3"),
    Case("BicotRewardsBound", waiting(0, 0.8), "20m"),  # it waits for rollout
    Case("BicotRewardsBound", waiting(3, 0.2), "20m"),  # the learner bounds it
    Case("BicotNothingToLearn", {f"ray_bicot_groups_without_spread{{{R}}}": "0.9x60"}, "50m", RUN, "90%"),
    Case("BicotNothingToLearn", {f"ray_bicot_groups_without_spread{{{R}}}": "0.3x60"}, "50m"),
    *(
        Case(
            "BicotCheckpointsFailing",
            {
                f'ray_bicot_checkpoints_total{{{R},outcome="failed"}}': failed,
                f"ray_bicot_last_checkpoint_unixtime{{{R}}}": last,
            },
            "30m",
            *labels,
        )
        for failed, last, labels in (
            ("0x10 1+1x30", "0x60", (RUN,)),
            ("0x60", "0x60", ()),
            ("0x10 1x50", "0+60x60", ()),  # the next try was well
        )
    ),
    Case("BicotDiskFilling", disk("20x300"), "30m", RUN, "2%"),
    Case("BicotDiskFilling", disk("280-1x270"), "60m", RUN, "22%"),  # full in four hours
    Case("BicotDiskFilling", disk("600x300"), "60m"),
]


def test_every_alert_is_tried_firing_and_silent() -> None:
    assert {case.alert for case in CASES if case.labels} == set(BY_NAME)
    assert {case.alert for case in CASES if case.labels is None} == set(BY_NAME)


def test_promtool_agrees(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    (tmp_path / ALERTS_NAME).write_text(rules_yaml())
    tests = tmp_path / "tests.yaml"
    groups = [group_of(number, case) for number, case in enumerate(CASES)]
    tests.write_text(yaml.safe_dump({"rule_files": [ALERTS_NAME], "evaluation_interval": "1m", "tests": groups}))
    done = subprocess.run(["promtool", "test", "rules", str(tests)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def group_of(number: int, case: Case) -> dict[str, Any]:
    alert = BY_NAME[case.alert]
    expected = []
    if case.labels is not None:
        summary = alert.summary.replace("{{ $labels.run }}", "a").replace(
            "{{ $labels.pool }}", case.labels.get("pool", "")
        )
        start, _, rest = summary.partition("{{ $value")
        summary = start + case.value + rest.partition("}}")[2] if rest else start
        expected = [
            {
                "exp_labels": {"severity": alert.severity, **case.labels},
                "exp_annotations": {"summary": summary, "description": alert.remedy},
            }
        ]
    return {
        "name": f"{case.alert}, case {number}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected}],
    }


def test_the_committed_rules_are_what_the_code_makes() -> None:
    assert (FOLDER / ALERTS_NAME).read_text() == rules_yaml(), "run `make boards`"
