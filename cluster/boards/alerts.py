"""The alerts of a run as data: when each fires, for how long it must have been so, and what to do then.

Ray's gauges are gone from Prometheus soon after a launcher has ended, so an alert of a run that has ended looks back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml

SILENT_FOR: Final = "10m"
"""How far back a run that has ended is looked for: its alert ends by itself after so long."""
STALLED_AFTER_S: Final = 900
FALL_IN_STDS: Final = 3


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule."""

    name: str
    expr: str
    """PromQL; fires for each series that it returns."""
    wait: str
    """It must have been so for this long."""
    severity: Literal["critical", "warning"]
    summary: str
    """With Prometheus' templates; every alert has the label `run`."""
    remedy: str
    """What to do, for the documentation."""


def _max(name: str, by: str = "run") -> str:
    return f"max by ({by}) (ray_bicot_{name})"


def _seen(name: str) -> str:
    return f"max by (run) (max_over_time(ray_bicot_{name}[{SILENT_FOR}]))"


ALERTS: Final = (
    Alert(
        "BicotRunEnded",
        f"{_seen('alive_unixtime')} unless on (run) {_max('alive_unixtime')} "
        f"unless on (run) ({_seen('step')} >= on (run) {_seen('steps_planned')})",
        "0m",
        "critical",
        "run {{ $labels.run }} has ended before its last step, or its launcher cannot be reached",
        "`python -m cluster.status RUN` says how it ended, and the command that goes on with it. A run that was "
        "stopped on purpose fires this too; the alert ends by itself after ten minutes.",
    ),
    Alert(
        "BicotRunStalled",
        f"(time() - {_max('last_step_unixtime')}) > on (run) clamp_min(5 * {_max('time_step_s')}, {STALLED_AFTER_S}) "
        f"or (time() - {_max('last_step_unixtime')} > 3600 unless on (run) {_max('time_step_s')})",
        "0m",
        "critical",
        "run {{ $labels.run }} has made no step for {{ $value | humanizeDuration }}",
        "`python -m cluster.status RUN` says what the next step waits for. Waiting for groups: look at the workers and "
        "at the rewards. Long evaluations count, too: `data.num_evaluation_prompts` bounds them. The run ends by "
        "itself after `run.step_timeout_s`.",
    ),
    Alert(
        "BicotRewardFalling",
        f"max by (run) (max_over_time(avg_over_time(ray_bicot_reward_mean[30m])[6h:10m])) "
        f"- max by (run) (avg_over_time(ray_bicot_reward_mean[30m])) "
        f"> on (run) {FALL_IN_STDS} * max by (run) (stddev_over_time(ray_bicot_reward_mean[30m])) + 0.01",
        "15m",
        "warning",
        "the reward of run {{ $labels.run }} is {{ $value | humanize }} below its best half hour",
        "Look at KL, ratio and gradient norm at the moment it began to fall. Usual causes: too high a learning rate, a "
        "reward that changed (a server that was replaced), weights that do not reach the workers (staleness). The "
        "checkpoint before the fall is a start for a new run with a lower `learner.lr`.",
    ),
    Alert(
        "BicotKLExploding",
        f"({_max('kl')} > 1) or ({_max('kl')} > 0.05 and on (run) "
        f"{_max('kl')} > on (run) 10 * max by (run) (avg_over_time(ray_bicot_kl[2h] offset 10m)))",
        "5m",
        "critical",
        "the KL divergence of run {{ $labels.run }} to its reference is {{ $value | humanize }} nats a token",
        "The policy runs away from what it started as; its pictures will look alike or break. Stop the run, and go on "
        "from an earlier checkpoint in a new run with a lower `learner.lr`, a higher `algorithm.kl_coef`, or clipping.",
    ),
    Alert(
        "BicotParityBroken",
        'max by (run) (ray_bicot_parity_mean_abs_cot / on (run) ray_bicot_parity_limit{tokens="cot"} '
        'or ray_bicot_parity_mean_abs_image / on (run) ray_bicot_parity_limit{tokens="image"}) > 1',
        "0m",
        "critical",
        "engine and learner of run {{ $labels.run }} differ by {{ $value | humanize }} times parity.max_abs",
        "Engine and learner give the same tokens different probabilities, so every ratio is wrong. A weight sync that "
        "went wrong, a changed template or guidance weight, or numerics (dtype, kernels). The notes of the run say at "
        "which step it began.",
    ),
    Alert(
        "BicotPoolIncomplete",
        f"{_max('pool_size', 'run, pool')} - on (run, pool) "
        'sum by (run, pool) (ray_bicot_workers{state="READY"}) > 0',
        "15m",
        "warning",
        "{{ $value }} workers of pool {{ $labels.pool }} of run {{ $labels.run }} are missing",
        "The run goes on without them, more slowly. `python -m cluster.status RUN` lists them: JOINING for long means "
        "no room in the cluster (`ray status`) or a slow start, STALE that weights reach them late, SUSPECT that they "
        "do not answer.",
    ),
    Alert(
        "BicotWorkersDying",
        "sum by (run, pool) (increase(ray_bicot_worker_deaths_total[30m])) > 3",
        "0m",
        "warning",
        "{{ $value | humanize }} workers of pool {{ $labels.pool }} of run {{ $labels.run }} died within half an hour",
        "The run's notes say why each died. Out of memory: fewer `rollout.max_num_seqs`, a smaller `batch_size` of the "
        "reward. Spot machines that are taken away are normal, and only cost time.",
    ),
    Alert(
        "BicotRewardsBound",
        'min_over_time((sum by (run, pool) (ray_bicot_pool_calls_waiting{pool=~"reward-.*"}))[15m:1m]) > 0 '
        'and on (run) sum by (run) (rate(ray_bicot_phase_seconds_total{phase="waiting"}[15m])) > 0.5',
        "0m",
        "warning",
        "run {{ $labels.run }} waits for {{ $labels.pool }}: {{ $value | humanize }} groups queue for it",
        "Rollout and learner idle because of this reward. Give it more `replicas` (or `{min, max}`), a larger "
        "`batch_size`, or a GPU; the panels *Wait for a batch* and *Time of a batch* show which of them helps.",
    ),
    Alert(
        "BicotNothingToLearn",
        "max by (run) (avg_over_time(ray_bicot_groups_without_spread[30m])) > 0.8",
        "15m",
        "warning",
        "in {{ $value | humanizePercentage }} of the groups of run {{ $labels.run }} all rewards are equal",
        "Prompts are too easy or too hard by now, or the reward is saturated: other prompts, a finer reward, a larger "
        "`algorithm.group_size`, or `algorithm.max_resamples`.",
    ),
    Alert(
        "BicotCheckpointsFailing",
        'sum by (run) (increase(ray_bicot_checkpoints_total{outcome="failed"}[1h])) > 0 '
        "and on (run) time() - max by (run) (ray_bicot_last_checkpoint_unixtime) > 600",
        "0m",
        "critical",
        "run {{ $labels.run }} cannot write its checkpoints",
        "The notes of the run say why; mostly the disk is full. After `checkpoint.max_failures` tries in a row the run "
        "ends.",
    ),
    Alert(
        "BicotDiskFilling",
        "min by (run) (ray_bicot_disk_free_bytes / ray_bicot_disk_size_bytes) < 0.05 "
        "or (min by (run) (ray_bicot_disk_free_bytes / ray_bicot_disk_size_bytes) < 0.3 "
        "and on (run) min by (run) (predict_linear(ray_bicot_disk_free_bytes[3h], 86400)) < 0)",
        "10m",
        "warning",
        "the disk of run {{ $labels.run }} has {{ $value | humanizePercentage }} left, and fills",
        "Lower `checkpoint.keep_last`, raise `checkpoint.every_steps`, or make room; a run may change both when it "
        "goes on. A full disk ends no step, but checkpoints fail on it.",
    ),
)


def rule_groups() -> list[dict[str, Any]]:
    """The groups of rules, as a rule file and a PrometheusRule hold them."""
    rules: list[dict[str, Any]] = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.wait,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.remedy},
        }
        for alert in ALERTS
    ]
    return [{"name": "bicot", "rules": rules}]


def rules_yaml() -> str:
    """The rule file that Prometheus loads."""
    header = "# Written by `make boards` from cluster/boards/alerts.py; do not edit.\n"
    return header + yaml.safe_dump({"groups": rule_groups()}, sort_keys=False, width=120)
