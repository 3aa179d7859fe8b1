"""What those who watch a run are told: phases, workers, groups, the trace of its groups."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from cluster.groups.roller import RolledGroup
from cluster.pools import ActorPool
from cluster.reports.activity import Activity
from cluster.reports.live import read_live, write_live
from cluster.reports.sample_file import data_uri, read_sample_file, write_sample_file
from cluster.reports.samples import SampleEntry
from cluster.reports.timeline import QUEUE, REWARDS, ROLLOUT, RUN, Timeline, read_timeline
from cluster.state.ledger import GroupState
from cluster.telemetry.export import Exporter
from cluster.telemetry.series import BY_NAME
from configs.load import load_config
from configs.schema import RunConfig
from tests.records import make_request, make_scored_group


class Told(Exporter):
    """An exporter that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("trial", is_on=False)
        self.gauges: dict[tuple[str, ...], float] = {}
        self.counts: dict[tuple[str, ...], float] = {}
        self.num_resent = 0

    def set(self, name: str, value: float, /, **labels: str) -> None:
        self.gauges[(name, *labels.values())] = value

    def count(self, name: str, by: float = 1.0, /, **labels: str) -> None:
        place = (name, *labels.values())
        self.counts[place] = self.counts.get(place, 0.0) + by

    def resend(self) -> None:
        self.num_resent += 1


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def timeline(tmp_path: Path) -> Timeline:
    return Timeline(tmp_path / "timeline.json")


@pytest.fixture
def config() -> RunConfig:
    return load_config("configs/shapes_cpu.yaml", ["algorithm.groups_per_step=4"])


@pytest.fixture
def activity(config: RunConfig, told: Told, timeline: Timeline, clock: Clock) -> Activity:
    return Activity(config, "trial", told, timeline, clock)


def rolled(sequence: int) -> RolledGroup:
    return RolledGroup(make_scored_group(sequence), None)


STEP = {"step": 1.0, "images": 4.0, "tokens": 40.0, "time/learn_s": 2.0, "time/sync_s": 0.1, "reward/mean": 0.5}


def test_the_phases_times_add_up_and_one_is_on(activity: Activity, told: Told, clock: Clock, tmp_path: Path) -> None:
    clock.now += 7
    activity.phase("waiting")
    clock.now += 2
    activity.pulse([], tmp_path)
    clock.now += 1
    activity.phase("learning")
    clock.now += 4
    activity.pulse([], tmp_path)
    seconds = {place[1]: value for place, value in told.counts.items() if place[0] == "bicot_phase_seconds"}
    assert seconds == {"starting": 7, "waiting": 3, "learning": 4}
    on = [place[1] for place, value in told.gauges.items() if place[0] == "bicot_phase" and value == 1]
    assert on == ["learning"]
    assert told.num_resent == 2


def test_groups_are_counted_and_say_what_the_next_step_waits_for(activity: Activity, told: Told) -> None:
    for sequence in range(3):
        activity.group(make_request(sequence), GroupState.DISPATCHED)
    activity.group(make_request(0), GroupState.SCORED)
    activity.group(make_request(0), GroupState.QUEUED)
    activity.group(make_request(1), GroupState.FAILED)
    activity.group(make_request(-1), GroupState.FAILED)  # of an evaluation
    tree = activity.tree()
    assert tree["next_step"] == {"0": "queued", "1": "failed", "2": "dispatched", "3": "not begun"}
    assert tree["under_way"]["the learner"] == 1
    assert (tree["groups"]["dispatched"], tree["groups"]["failed"]) == (3, 1)
    activity.step(STEP, [rolled(0)])
    assert told.counts["bicot_groups", "trained"] == 1
    assert told.counts["bicot_images_learned",] == 4
    assert activity.tree()["next_step"] == {str(sequence): "not begun" for sequence in range(4, 8)}


def test_a_worker_that_was_drained_has_not_died(activity: Activity, told: Told) -> None:
    for worker, states in {"rollout-0": ("READY", "DRAINING", "DEAD"), "reward-a-3": ("READY", "DEAD")}.items():
        for state in states:
            activity.worker(worker, state)
    assert {place: n for place, n in told.counts.items() if "deaths" in place[0]} == {
        ("bicot_worker_deaths", "reward-a"): 1
    }


def test_pools_are_told_with_every_state_that_a_worker_can_have(activity: Activity, told: Told, tmp_path: Path) -> None:
    member = SimpleNamespace(
        worker_id="rollout-0",
        state="READY",
        num_calls=2,
        node_id="0123456789",
        health=SimpleNamespace(held_version=SimpleNamespace(number=4)),
    )
    pool = SimpleNamespace(kind="rollout", size=2, num_calls=5, num_lost=1, everyone=(member,))
    activity.pulse([cast(ActorPool, pool)], tmp_path)
    states = {place[2]: value for place, value in told.gauges.items() if place[0] == "bicot_workers"}
    assert states == {"JOINING": 0, "STALE": 0, "READY": 1, "SUSPECT": 0, "DRAINING": 0}
    assert told.gauges["bicot_pool_calls_waiting", "rollout"] == 3
    assert activity.tree()["pools"][0]["workers"][0]["version"] == 4


def test_everything_told_is_in_the_table(activity: Activity, told: Told, tmp_path: Path) -> None:
    activity.pulse([], tmp_path)
    activity.checkpoint(is_written=True)
    activity.restart()
    for name, *labels in [*told.gauges, *told.counts]:
        assert len(labels) == len(BY_NAME[name].labels)


def test_a_note_loses_its_secrets(activity: Activity) -> None:
    activity.note("redis://:hunter2@host:6379 does not answer")
    assert "hunter2" not in json.dumps(activity.tree()["notes"])


def test_the_trace_holds_each_groups_way_and_can_be_read_at_any_time(
    activity: Activity, timeline: Timeline, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "timeline.json"
    activity.phase("waiting")
    clock.now += 3
    activity.phase("learning")
    activity.step(STEP, [rolled(0), rolled(1)])  # both rolled from 10.0 to 12.5, so they need two rows
    timeline.flush()
    assert path.read_text().startswith("[\n")
    events = read_timeline(path)
    spans = [event for event in events if event["ph"] == "X"]
    rollouts = [span for span in spans if span["pid"] == ROLLOUT]
    assert [(span["ts"], span["dur"], span["name"]) for span in rollouts] == [
        (10_000_000, 2_500_000, "group 0"),
        (10_000_000, 2_500_000, "group 1"),
    ]
    assert len({span["tid"] for span in rollouts}) == 2
    names = {e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == ROLLOUT}
    assert names == {"rollout-0", "rollout-0 (2)"}
    assert [span["dur"] for span in spans if span["pid"] == REWARDS] == [250_000] * 2
    assert [span["ts"] + span["dur"] for span in spans if span["pid"] == QUEUE] == [1_003_000_000] * 2
    assert [span["name"] for span in spans if span["pid"] == RUN] == ["starting", "waiting"]
    arrows = [(event["ph"], event["id"]) for event in events if event["ph"] in "sf"]
    assert arrows == [("s", 0), ("f", 0), ("s", 1), ("f", 1)]


def test_a_trace_that_is_ended_is_json_also_after_the_run_has_gone_on(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    for life in range(2):
        timeline = Timeline(path)
        timeline.moment(RUN, f"life {life}", 5.0)
        timeline.close()
    events: list[dict[str, Any]] = json.loads(path.read_text())
    assert [event["name"] for event in events if event["ph"] == "i"] == ["life 0", "life 1"]
    path.write_bytes(path.read_bytes()[:-30])  # the power went
    assert len(read_timeline(path)) >= len(events) - 2


def test_a_timeline_that_is_off_leaves_no_file(tmp_path: Path) -> None:
    timeline = Timeline(None)
    timeline.moment(RUN, "life", 5.0)
    timeline.close()
    assert list(tmp_path.iterdir()) == []


def test_live_json_is_whole_or_not_there(tmp_path: Path, activity: Activity) -> None:
    assert read_live(tmp_path / "live.json") is None
    write_live(tmp_path / "live.json", activity.tree())
    tree = read_live(tmp_path / "live.json")
    assert tree is not None
    assert (tree["run"], tree["phase"], tree["steps"]) == ("trial", "starting", 80)
    write_live(tmp_path / "gone" / "live.json", activity.tree())  # the folder was removed: nothing is raised


def test_a_sample_file_holds_the_very_pixels_of_a_small_picture(tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    entry = SampleEntry(picture, 'a <b> & "c"', "plan", 0.5, "why", {"shapes": 0.5})
    nan = SampleEntry(picture, "p", "", float("nan"))
    write_sample_file(tmp_path / "step_000004.json", "step 4", [entry, nan], step=4)
    tree = read_sample_file(tmp_path / "step_000004.json")
    assert tree is not None
    first, second = tree["entries"]
    assert (tree["step"], first["prompt"], first["rewards"], second["score"]) == (
        4,
        entry.prompt,
        {"shapes": 0.5},
        None,
    )
    data = base64.b64decode(first["picture"].partition(",")[2])
    assert (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) == picture).all()
    large = data_uri(np.zeros((768, 768, 3), np.uint8))
    assert Image.open(io.BytesIO(base64.b64decode(large.partition(",")[2]))).size == (384, 384)
