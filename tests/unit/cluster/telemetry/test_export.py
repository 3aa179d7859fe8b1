"""Series and their way out: names that do not collide, gauges that are told again, counters that only grow."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from cluster.reports.metrics import METRICS
from cluster.telemetry.export import Exporter
from cluster.telemetry.series import FAMILIES, SERIES, gauge_of
from scripts.site.metrics_reference import metrics_reference

PLAIN = frozenset(METRICS)


class Recorder:
    """Stands for Ray's Gauge, Counter and Histogram: remembers each call."""

    made: dict[str, Recorder]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...], boundaries: Any = None) -> None:
        self.name, self.tag_keys = name, tag_keys
        self.calls: list[tuple[float, dict[str, str]]] = []
        type(self).made[name] = self

    def take(self, value: float, tags: dict[str, str]) -> None:
        if set(tags) != set(self.tag_keys):
            raise ValueError(f"{self.name} wants {self.tag_keys}, got {tags}")
        self.calls.append((value, tags))

    set = inc = observe = take


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    monkeypatch.setattr(Recorder, "made", {}, raising=False)
    return Recorder.made


@pytest.fixture
def exporter(made: dict[str, Recorder]) -> Exporter:
    return Exporter("trial", kinds=dict.fromkeys(("gauge", "counter", "histogram"), Recorder))


def test_no_two_series_have_one_name() -> None:
    names = [series.name for series in SERIES]
    names += [gauge_of(key, PLAIN)[0] for key in METRICS]
    names += [family.name for family in FAMILIES]
    assert sorted(names) == sorted(set(names))
    assert [name for name in names if not re.fullmatch(r"bicot_[a-z_]+(\{suffix\})?", name)] == []


def test_what_ray_refuses_is_not_in_the_table() -> None:
    """A histogram's boundaries must be greater than 0 and rise; Ray drops a metric whose name it does not like."""
    for series in SERIES:
        assert (series.kind == "histogram") == bool(series.boundaries)
        assert list(series.boundaries) == sorted(set(series.boundaries))
        assert all(boundary > 0 for boundary in series.boundaries)
        assert "run" not in series.labels


@pytest.mark.parametrize(
    ("key", "name", "labels"),
    [
        ("reward/mean", "bicot_reward_mean", {}),
        ("reward/std_in_group", "bicot_reward_std_in_group", {}),
        ("reward/hps", "bicot_reward_score", {"reward": "hps"}),
        ("reward/hps/std_in_group", "bicot_reward_score_std_in_group", {"reward": "hps"}),
        ("reward/mine:Own/queue_ms", "bicot_reward_score_queue_ms", {"reward": "mine:Own"}),
        ("reward_correlation/hps~git", "bicot_reward_correlation", {"reward": "hps~git"}),
        ("evaluation/heldout", "bicot_evaluation", {"set": "heldout"}),
        ("evaluation/heldout/change", "bicot_evaluation_change", {"set": "heldout"}),
        ("evaluation/heldout/hps", "bicot_evaluation_reward", {"set": "heldout", "reward": "hps"}),
        ("evaluation/heldout/hps/change", "bicot_evaluation_reward_change", {"set": "heldout", "reward": "hps"}),
        ("staleness/share_2", "bicot_staleness_share", {"lag": "2"}),
        ("parity/max_abs/cot", "bicot_parity_max_abs_cot", {}),
    ],
)
def test_names_of_the_config_become_labels(key: str, name: str, labels: dict[str, str]) -> None:
    assert gauge_of(key, PLAIN) == (name, labels)


def test_a_gauge_is_told_again_until_it_is_measured_anew(exporter: Exporter, made: dict[str, Recorder]) -> None:
    exporter.set("bicot_kl", 0.25)
    exporter.set("bicot_workers", 2, pool="rollout", state="READY")
    exporter.resend()
    exporter.resend()
    assert [value for value, _ in made["bicot_kl"].calls] == [0.25] * 3
    assert made["bicot_workers"].calls[-1] == (2, {"run": "trial", "pool": "rollout", "state": "READY"})
    exporter.set("bicot_kl", math.nan)
    exporter.set("bicot_workers", 0, pool="rollout", state="READY")
    exporter.resend()
    assert made["bicot_kl"].calls[-1][0] == 0.25
    assert made["bicot_workers"].calls[-1][0] == 0


def test_a_counter_grows_by_what_a_sum_has_grown(exporter: Exporter, made: dict[str, Recorder]) -> None:
    for total in (5, 5, 12):
        exporter.count_to("bicot_engine_preemptions", total, worker="rollout-0")
    exporter.count("bicot_steps", 0)
    assert [value for value, _ in made["bicot_engine_preemptions"].calls] == [5, 7]
    assert "bicot_steps" not in made


def test_what_ray_raises_is_said_once_and_reaches_nobody(
    exporter: Exporter, made: dict[str, Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        exporter.set("bicot_workers", 1, pool="rollout")  # without its state
    assert [record.message for record in caplog.records] == [
        "the metric bicot_workers cannot be told of: bicot_workers wants ('run', 'pool', 'state'), "
        "got {'run': 'trial', 'pool': 'rollout'}"
    ]


def test_an_exporter_that_is_off_makes_no_metric(made: dict[str, Recorder]) -> None:
    exporter = Exporter("trial", is_on=False, kinds=dict.fromkeys(("gauge", "counter", "histogram"), Recorder))
    exporter.set("bicot_kl", 0.25)
    exporter.count("bicot_steps")
    exporter.observe("bicot_reward", 0.5)
    exporter.resend()
    assert made == {}


def test_the_documentation_names_every_series() -> None:
    page = metrics_reference()
    for series in SERIES:
        assert f"| `{series.exported}` | {series.kind} |" in page
    for family in FAMILIES:
        assert f"| `{family.key}` |" in page
