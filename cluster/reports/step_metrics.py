"""What one optimizer step reports about its groups: pure functions of the records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.reports.reward_health import reward_health
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
    metrics = {
        "step": step + 1,
        "weight_version": step + 1,
        "reward/mean": float(rewards.mean()),
        "reward/std_in_group": float(np.mean([group.rewards.std(ddof=1) for group in groups])),
        "time/step_s": duration_s,
        "time/wait_s": times.batch_arrived - times.started,
        "time/rollout_s": float(np.mean([group.rollout.finished_s - group.rollout.started_s for group in groups])),
        "time/reward_s": float(np.mean([group.scored_s for group in groups])),
        "time/learn_s": times.learned - times.batch_arrived,
        "time/sync_s": times.published - times.learned,
        "images": len(rewards),
        "images_per_s": len(rewards) / duration_s,
    }
    return metrics | reward_health(groups) | dict(learner)
