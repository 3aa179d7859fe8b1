"""What one optimizer step reports about its groups: pure functions of the records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.reports.reward_health import reward_health
from rewards.worker import RewardFigures
from rollout.records import ScoredGroup


@dataclass(slots=True)
class StepTimes:
    """Moments of a step on the launcher's monotonic clock, in seconds."""

    started: float
    batch_arrived: float = math.nan
    learned: float = math.nan
    published: float = math.nan


def step_metrics(
    step: int, groups: Sequence[ScoredGroup], learner: Mapping[str, float], times: StepTimes
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
    return metrics | reward_health(groups) | dict(learner)


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
