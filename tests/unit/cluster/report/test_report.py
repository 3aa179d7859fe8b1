"""The report: charts, what it says of a run, and what it does with hostile texts and broken files."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cluster.report import read_run, report_html
from cluster.report.__main__ import main
from cluster.report.charts import MAX_POINTS, Chart, Line, nice_ticks, number
from cluster.report.curves import _label, charts_of
from cluster.report.sections import correlations, fault_counts, faults, from_defaults, reward_table, time_split, verdict
from cluster.report.view import config_differences, read_runs
from configs.errors import ConfigError
from tests.runs import finish, make_run

LABELLED = (
    ("kl", "kl/cot"),
    ("pipeline_efficiency", "busy/rollout"),
    ("parity/mean_abs/cot", "parity/mean_abs/image"),
    ("time/reward_s", "time/rollout_s"),
)


class Page(HTMLParser):
    """What a page refers to, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.num_scripts = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.num_scripts += tag == "script"
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.41, 0.72), (-3, 8), (1e-7, 4e-7), (5, 5), (0, 0), (-1e9, 1e9)])
def test_ticks_are_round_few_and_enclose_what_is_drawn(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 2.5, 5, 10)) < 1e-6


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (0.0, "0"), (0.00123, "0.00123"), (12.345, "12.3"), (4560, "4560"),
     (45600, "45.6k"), (3.2e6, "3.2M"), (1.2e-7, "1.2e-07"), (-0.5, "-0.5")],
)  # fmt: skip
def test_numbers_have_three_digits_that_matter(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_chart_draws_what_is_there_and_leaves_gaps() -> None:
    line = Line("kl <b>", [1, 2, 3, 4], [0.1, None, 0.3, math.nan], 1)
    drawn = Chart("KL", "nats", [line]).svg()
    (path,) = re.findall(r'<path d="([^"]*)"', drawn)
    assert path.count("M") == 2
    assert "kl <b>" not in drawn
    assert Chart("none", "", [Line("", [1, 2], [None, None])]).is_empty
    many = Chart("long", "", [Line("", list(range(5000)), [math.sin(i / 50) for i in range(5000)])]).svg()
    (path,) = re.findall(r'<path d="([^"]*)"', many)
    assert path.count(",") <= MAX_POINTS


def test_areas_lie_on_each_other() -> None:
    chart = Chart("time", "s", [Line("a", [1, 2], [1, 2]), Line("b", [1, 2], [3, 3], 1)], is_stacked=True)
    areas = re.findall(r'class="area c(\d)" d="M([^"]*)Z"', chart.svg())
    tops = {color: [float(pair.split(",")[1]) for pair in shape.split("L")[:2]] for color, shape in areas}
    assert all(b < a for a, b in zip(tops["0"], tops["1"], strict=True)), "b begins where a ends, higher up"


def test_a_report_says_what_the_files_say(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    finish(directory)
    view = read_run(directory.path)
    assert (view.status, view.step, view.steps, view.rewards) == ("finished", 12, 40, ("shapes", "second"))
    tile = verdict(view)[0]
    assert (tile["name"], tile["before"], tile["after"]) == ("heldout", 0.42, 0.71)
    shapes, second = reward_table(view)
    assert [round(row["sets"][0]["drift"], 6) for row in (shapes, second)] == [0.2, -0.2]
    assert correlations(view) == [("shapes", [1.0, -0.4]), ("second", [-0.4, 1.0])]
    assert [(part["name"], part["share"]) for part in time_split(view)] == [("learning", 0.8), ("starting", 0.2)]
    counts = dict(fault_counts(view))
    assert (counts["workers lost"], counts["attempts at a group that failed"]) == (1, 1)
    assert [line["text"].split(":")[0] for line in faults(view)] == ["rollout-0 died", "rollout-0 DEAD"]
    assert "Reward" in [chart.title for chart in charts_of([view])]
    differing = {name for name, _, _ in from_defaults(view)}
    assert {"run.steps", "learner.lr", "model.dtype"} <= differing
    assert not differing & {"rollout.num_workers", "checkpoint.keep_last", "parity.every_steps", "run.dir"}


def test_lines_are_called_by_what_tells_them_apart() -> None:
    called = {key: _label(key, keys) for keys in LABELLED for key in keys}
    assert called == {
        "kl": "all tokens",
        "kl/cot": "semantic CoT",
        "pipeline_efficiency": "pipeline efficiency",
        "busy/rollout": "rollout",
        "parity/mean_abs/cot": "semantic CoT",
        "parity/mean_abs/image": "image tokens",
        "time/reward_s": "reward",
        "time/rollout_s": "rollout",
    }


def test_texts_of_a_run_stay_texts_and_nothing_is_asked_of_a_network(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    finish(directory)
    html = report_html([read_run(directory.path)])
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    page = Page()
    page.feed(html)
    assert page.num_scripts == 1
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "default-src 'none'" in html
    assert "url(" not in html.replace("data:", "")


def test_a_run_that_was_killed_or_has_broken_files_has_a_report(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    directory.samples_path(12).with_suffix(".json").write_text('{"title": "torn", "entr')
    (directory.path / "live.json").write_text("[]")
    directory.timeline_path.write_bytes(directory.timeline_path.read_bytes()[:-20])
    view = read_run(directory.path)
    assert view.status == "killed"
    assert "--resume" in report_html([view])
    directory.metrics_path.unlink()
    directory.timeline_path.unlink()
    assert "No step has been made yet" in report_html([read_run(directory.path)])


def test_runs_are_compared_by_what_differs(tmp_path: Path) -> None:
    low = make_run(tmp_path, "low", overrides=["learner.lr=1e-4"])
    high = make_run(tmp_path, "high", steps=5)
    views = read_runs([low.path, high.path])
    assert config_differences(views) == [("learner.lr", ["0.0001", "0.0004"])]
    html = report_html(views)
    assert "Differences" in html
    assert "low training" in html
    twice = read_runs([low.path, low.path])
    assert len({view.name for view in twice}) == 2


def test_a_rewards_fields_are_told_one_by_one(tmp_path: Path) -> None:
    plain = make_run(tmp_path, "plain")
    heavy = make_run(tmp_path, "heavy", overrides=['rewards=[{"name": "shapes", "weight": 2.0, "batch_size": 4}]'])
    views = read_runs([plain.path, heavy.path])
    found = dict(config_differences(views))
    assert found["rewards"] == ["shapes, second", "shapes"]
    assert found["rewards[shapes].weight"] == ["1.0", "2.0"]
    assert found["rewards[second].weight"] == ["0.5", "–"]
    told = {name: (value, default) for name, value, default in from_defaults(views[1]) if name.startswith("rewards")}
    assert told["rewards[shapes].weight"] == ("2.0", "1.0")
    assert "rewards[shapes].retries" not in told


def test_the_command_writes_one_file_beside_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_run(tmp_path)
    assert main([str(directory.path)]) == 0
    assert str(directory.report_path) in capsys.readouterr().out
    assert directory.report_path.stat().st_size < 4e6
    assert main([str(tmp_path / "nothing")]) == 2
    assert "there is no run here" in capsys.readouterr().err
    assert main([str(directory.path), "--to", str(tmp_path / "gone" / "r.html")]) == 2
    assert "--to" in capsys.readouterr().err


def test_no_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run here"):
        read_run(tmp_path)
