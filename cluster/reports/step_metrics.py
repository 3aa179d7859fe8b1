"""What one optimizer step reports about its groups: pure functions of the records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.groups import GroupRoller
from cluster.groups.roller import RollCounts
from cluster.reports.reward_health import reward_health
from rewards.worker import RewardFigures
from rollout.records import ScoredGroup


@dataclass(slots=True)
class StepTimes:
    """Moments of a step on the launcher's monotonic clock, in seconds, and how long other stages were at work."""

    before: float
    """The step before was done; since then its metrics were written, its pictures drawn, a checkpoint begun."""
    started: float
    batch_arrived: float = math.nan
    learned: float = math.nan
    published: float = math.nan
    drawing_s: float = 0.0
    """Of the time from `before` to `published`, that in which groups were drawn, of whatever step."""
    scoring_s: float = 0.0
    """Likewise, in which groups were scored."""

    @property
    def period_s(self) -> float:
        """What the run advanced in: the step, and what came between it and the step before."""
        return self.published - self.before


class StepClock:
    """Times the steps of a run, one after the other."""

    def __init__(self, counts: RollCounts, clock: Callable[[], float] = time.monotonic) -> None:
        """counts: of the roller, which knows how long the stages before the learner are at work."""
        self._counts = counts
        self._clock = clock
        self._before = 0.0
        self.restart()

    def restart(self) -> None:
        """What was before is part of no step."""
        self._before = self._clock()
        for stage in (self._counts.drawing, self._counts.scoring):
            stage.take_s()

    def step(self) -> StepTimes:
        """A step begins: the learner waits for its groups."""
        return StepTimes(self._before, self._clock())

    def end(self, times: StepTimes) -> None:
        """The step's weights are published."""
        times.published = self._before = self._clock()
        times.drawing_s, times.scoring_s = self._counts.drawing.take_s(), self._counts.scoring.take_s()


@dataclass(frozen=True, slots=True)
class GroupTimes:
    """Moments of a group on the launcher's monotonic clock, in seconds, in this order."""

    admitted: float
    """It might be rolled from here on, and may have waited for a worker."""
    drawn: float
    scored: float


def step_metrics(
    step: int,
    groups: Sequence[ScoredGroup],
    learner: Mapping[str, float],
    times: StepTimes,
    group_times: Sequence[GroupTimes],
) -> dict[str, float]:
    """All metrics of a step; keys as `cluster.reports.metrics` documents them. `step` counts from 0; the
    reported one counts optimizer steps made, and so does the weight version they gave."""
    rewards = np.concatenate([group.rewards for group in groups])
    duration_s = times.published - times.started
    num_images = int(np.isfinite(rewards).sum())
    metrics = {
        "step": step + 1,
        "weight_version": step + 1,
        "reward/mean": float(np.nanmean(rewards)),
        "reward/std_in_group": float(np.mean([np.nanstd(group.rewards, ddof=1) for group in groups])),
        "time/step_s": duration_s,
        "time/wait_s": times.batch_arrived - times.started,
        "time/rollout_s": float(np.mean([group.rollout.finished_s - group.rollout.started_s for group in groups])),
        "time/reward_s": float(np.mean([group.scored_s for group in groups])),
        "time/learn_s": times.learned - times.batch_arrived,
        "time/sync_s": times.published - times.learned,
        "images": num_images,
        "images_per_s": num_images / duration_s,
    }
    return metrics | critical_path(times, group_times) | stage_shares(times) | reward_health(groups) | dict(learner)


def critical_path(times: StepTimes, groups: Sequence[GroupTimes]) -> dict[str, float]:
    """What the run waited for from the end of the step before to the end of this one, in seconds that add up to it.

    The learner waits for the last of its groups, so its wait is divided as that group's way was: until it was
    admitted, for new weights to reach the workers; then for its pictures, its scores, and the queue.
    """
    last = max(groups, key=lambda group: group.scored)

    def waited(begin: float, end: float) -> float:
        return max(0.0, min(end, times.batch_arrived) - max(begin, times.started))

    return {
        "critical/rollout_s": waited(last.admitted, last.drawn),
        "critical/rewards_s": waited(last.drawn, last.scored),
        "critical/queue_s": waited(last.scored, times.batch_arrived),
        "critical/learn_s": times.learned - times.batch_arrived,
        "critical/sync_s": times.published - times.learned + waited(times.started, last.admitted),
        "critical/other_s": times.started - times.before,
    }


def stage_shares(times: StepTimes) -> dict[str, float]:
    """How much of the time of `critical_path` each stage was at work, from 0 to 1, and the greatest of them: 1 when the
    slowest stage never waits, which is as fast as a pipeline of these stages can be."""
    shares = {
        "busy/rollout": times.drawing_s / times.period_s,
        "busy/rewards": times.scoring_s / times.period_s,
        "busy/learner": (times.learned - times.batch_arrived) / times.period_s,
    }
    return {**shares, "pipeline_efficiency": max(shares.values())}


def roller_metrics(roller: GroupRoller) -> dict[str, float]:
    """What the way from prompts to scored groups has counted."""
    return {
        "scores_cached": roller.rewards.num_cached,
        "groups_rolled_again": roller.counts.num_rolled_again,
        "images_left_out": roller.counts.num_left_out,
        **reward_work(roller.rewards.take_figures()),
    }


def reward_work(figures: Mapping[str, RewardFigures]) -> dict[str, float]:
    """Of each reward, what its replicas did since the last step. NaN where they were not asked."""
    metrics: dict[str, float] = {}
    for name, work in figures.items():
        num, num_calls = work.num_pictures or math.nan, work.num_calls or math.nan
        metrics |= {
            f"reward/{name}/queue_ms": 1000 * work.queue_s / num,
            f"reward/{name}/batch_ms": 1000 * work.busy_s / num_calls,
            f"reward/{name}/images_per_s": work.num_pictures / (work.busy_s or math.nan),
            f"reward/{name}/failed": work.num_failed,
            f"reward/{name}/repeated": work.num_repeated,
        }
    return metrics
