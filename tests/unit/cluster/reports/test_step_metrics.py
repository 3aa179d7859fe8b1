"""What a step reports of its groups, against sums done by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cluster.groups.busy_clock import BusyClock
from cluster.groups.roller import RollCounts
from cluster.reports.metrics import METRIC_PREFIXES, METRICS
from cluster.reports.step_metrics import GroupTimes, StepClock, StepTimes, critical_path, reward_work, step_metrics
from rewards.worker import RewardFigures
from tests.records import make_scored_group

TIMES = StepTimes(98.0, 100.0, batch_arrived=103.0, learned=107.0, published=108.0, drawing_s=6.0, scoring_s=2.5)
EARLY = GroupTimes(admitted=90.0, drawn=95.0, scored=96.0)


def test_times_are_those_between_the_moments_of_the_step():
    metrics = step_metrics(4, [make_scored_group()], {}, TIMES, [EARLY])
    assert (metrics["time/wait_s"], metrics["time/learn_s"], metrics["time/sync_s"]) == (3.0, 4.0, 1.0)
    assert metrics["time/step_s"] == 8.0
    assert metrics["time/rollout_s"] == 2.5  # 10.0 to 12.5 in the record
    assert metrics["time/reward_s"] == 0.25
    assert metrics["images_per_s"] == 2 / 8


@pytest.mark.parametrize(
    ("last", "rollout", "rewards", "queue", "sync"),
    [
        (EARLY, 0.0, 0.0, 3.0, 1.0),  # all were there before the learner looked: nothing but the queue was waited for
        (GroupTimes(99.0, 101.5, 102.5), 1.5, 1.0, 0.5, 1.0),
        (GroupTimes(100.5, 102.0, 102.75), 1.5, 0.75, 0.25, 1.5),  # admitted late: the new weights were late
        (GroupTimes(99.0, 99.5, 102.75), 0.0, 2.75, 0.25, 1.0),
    ],
)
def test_the_critical_path_is_that_of_the_last_group_and_adds_up_to_the_wall_time(
    last: GroupTimes, rollout: float, rewards: float, queue: float, sync: float
):
    path = critical_path(TIMES, [GroupTimes(80.0, 81.0, 82.0), last])
    assert (path["critical/rollout_s"], path["critical/rewards_s"]) == (rollout, rewards)
    assert (path["critical/queue_s"], path["critical/sync_s"]) == (queue, sync)
    assert (path["critical/learn_s"], path["critical/other_s"]) == (4.0, 2.0)
    assert sum(path.values()) == pytest.approx(TIMES.published - TIMES.before)


def test_efficiency_is_the_share_of_the_time_in_which_the_slowest_stage_was_at_work():
    metrics = step_metrics(4, [make_scored_group()], {}, TIMES, [EARLY])
    assert (metrics["busy/rollout"], metrics["busy/rewards"], metrics["busy/learner"]) == (0.6, 0.25, 0.4)
    assert metrics["pipeline_efficiency"] == 0.6


def test_a_stage_with_several_groups_is_busy_once_and_evaluations_are_part_of_no_step():
    now = [0.0]
    counts = RollCounts(drawing=BusyClock(lambda: now[0]), scoring=BusyClock(lambda: now[0]))
    clock = StepClock(counts, lambda: now[0])
    now[0] = 1.0
    times = clock.step()
    with counts.drawing.inside():
        now[0] = 2.0
        with counts.drawing.inside(), counts.scoring.inside():
            now[0] = 3.0
        now[0] = 4.0
        clock.end(times)
        assert (times.before, times.started, times.published) == (0.0, 1.0, 4.0)
        assert (times.drawing_s, times.scoring_s) == (3.0, 1.0)
        now[0] = 9.0  # an evaluation
        clock.restart()
        now[0] = 10.0
        times = clock.step()
        now[0] = 11.0
    now[0] = 12.0
    clock.end(times)
    assert (times.period_s, times.drawing_s, times.scoring_s) == (3.0, 2.0, 0.0)


def test_a_step_counts_from_one_and_gives_the_version_of_its_number():
    metrics = step_metrics(4, [make_scored_group()], {}, TIMES, [EARLY])
    assert (metrics["step"], metrics["weight_version"]) == (5, 5)


def test_rewards_are_averaged_over_trajectories_and_spread_within_groups():
    groups = [make_scored_group(0, (0.0, 1.0)), make_scored_group(1, (0.5, 0.5))]
    metrics = step_metrics(0, groups, {}, TIMES, [EARLY])
    assert metrics["reward/mean"] == 0.5
    assert metrics["reward/std_in_group"] == pytest.approx((math.sqrt(0.5) + 0.0) / 2)
    assert metrics["images"] == 4


def test_a_reward_that_does_not_apply_is_left_out_of_its_mean():
    group = make_scored_group(0, (0.0, 1.0))
    columns = {"shapes": np.array([np.nan, 0.75], np.float32), "orm": np.array([np.nan, np.nan], np.float32)}
    metrics = step_metrics(0, [replace(group, reward_columns=columns)], {}, TIMES, [EARLY])
    assert metrics["reward/shapes"] == 0.75
    assert math.isnan(metrics["reward/orm"])


def test_what_the_learner_measured_is_passed_on_and_every_key_is_documented():
    metrics = step_metrics(0, [make_scored_group()], {"loss": 0.5, "staleness/max": 1.0}, TIMES, [EARLY])
    assert (metrics["loss"], metrics["staleness/max"]) == (0.5, 1.0)
    assert all(key in METRICS or key.startswith(tuple(METRIC_PREFIXES)) for key in metrics)


def test_a_picture_without_a_reward_is_no_part_of_the_figures():
    groups = [make_scored_group(0, (0.0, math.nan, 1.0)), make_scored_group(1, (0.5, 0.5, 0.5))]
    metrics = step_metrics(0, groups, {}, TIMES, [EARLY])
    assert metrics["reward/mean"] == pytest.approx(0.5)
    assert metrics["reward/std_in_group"] == pytest.approx((math.sqrt(0.5) + 0.0) / 2)
    assert (metrics["images"], metrics["images_per_s"]) == (5, 5 / 8)


def test_what_the_replicas_of_a_reward_did_is_told_by_picture_and_by_batch():
    work = RewardFigures(num_pictures=40, num_failed=2, num_calls=5, num_repeated=8, queue_s=4.0, busy_s=10.0)
    metrics = reward_work({"hps": work, "orm": RewardFigures()})
    assert {key.removeprefix("reward/hps/"): value for key, value in metrics.items() if "/hps/" in key} == {
        "queue_ms": 100.0,
        "batch_ms": 2000.0,
        "images_per_s": 4.0,
        "failed": 2,
        "repeated": 8,
    }
    assert math.isnan(metrics["reward/orm/batch_ms"])
    assert metrics["reward/orm/failed"] == 0
    assert all(key.startswith(tuple(METRIC_PREFIXES)) for key in metrics)
