"""What a run measures: metrics.jsonl while it runs, summary.json at its end.

metrics.jsonl holds one JSON object a step with the keys of `METRICS`; `cluster.reports.metrics_file` writes it. A value
that is not finite is written as null, so that any JSON reader can read the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from configs.errors import DataError

MetricsRow = dict[str, float | None]

METRICS: Final[Mapping[str, str]] = {
    "step": "optimizer steps made, from 1",
    "weight_version": "version of the policy's weights after the step",
    "images": "pictures the step learned from",
    "images_per_s": "pictures learned from, per second of the step's wall time",
    "reward/mean": "combined reward, mean over the step's trajectories",
    "reward/std_in_group": "combined reward, standard deviation within a group, mean over groups",
    "loss": "BiCoT-GRPO loss, mean over all text and image tokens (or as algorithm.loss_normalization has it)",
    "kl": "k3 estimate of the KL divergence to the reference policy, nats a token",
    "kl/cot": "the same over the semantic CoT's tokens alone",
    "kl/image": "the same over the image tokens alone",
    "entropy/cot": "entropy of the policy that is trained over the semantic CoT's tokens, nats a token",
    "entropy/image": "the same over the image tokens; without guidance, unless algorithm.policy is guided",
    "ratio/mean": "probability under the learner over probability when sampled (or recomputed), mean over tokens",
    "ratio/min": "the same, smallest of all tokens",
    "ratio/max": "the same, largest of all tokens",
    "behaviour_kl": "k3 estimate of the KL divergence from the weights that sampled to the learner's, nats a token",
    "behaviour_kl/cot": "the same over the semantic CoT's tokens alone",
    "behaviour_kl/image": "the same over the image tokens alone",
    "clip_fraction": "share of tokens whose gradient the clip removed (cispo: weakened)",
    "clip_fraction/cot": "the same of the semantic CoT's tokens",
    "clip_fraction/image": "the same of the image tokens",
    "mismatch_fraction": "share of tokens that algorithm.mismatch_correction cut or left out",
    "parity/mean_abs/cot": "engine's against learner's log-probability under the same weights, semantic CoT: mean |Δ|, "
    "nats a token; of steps with tokens that the learner's own version sampled",
    "parity/mean_abs/image": "the same of the image tokens",
    "parity/max_abs/cot": "the same, largest |Δ| of all of the semantic CoT's tokens",
    "parity/max_abs/image": "the same, largest |Δ| of all image tokens",
    "parity/kl/cot": "k3 estimate of the KL divergence from engine to learner, semantic CoT, nats a token",
    "parity/kl/image": "the same over the image tokens",
    "parity/bias/cot": "mean of learner's minus engine's log-probability, semantic CoT, nats a token",
    "parity/bias/image": "the same of the image tokens",
    "parity/limit/cot": "what the gate allows of parity/mean_abs/cot in each rollout worker, nats a token",
    "parity/limit/image": "the same of parity/mean_abs/image",
    "parity/temperature/cot": "sampling temperature that the tokens of semantic CoTs show; every parity.every_steps",
    "parity/temperature/image": "the same of the image tokens",
    "parity/guidance_scale": "guidance scale that the image tokens show; every parity.every_steps",
    "advantage/std": "standard deviation of the advantages over the step's trajectories",
    "advantage/min": "smallest advantage",
    "advantage/max": "largest advantage",
    "groups_without_spread": "share of groups whose trajectories all have the same reward, and so teach nothing",
    "grad_norm": "L2 norm of the gradient, before clipping; mean over the step's optimizer updates",
    "lr": "learning rate of the step",
    "groups_given_up": "prompts given up since the start of the run, and replaced by others",
    "groups_resampled": "prompts replaced since the start of the run, since all their rewards were equal "
    "(algorithm.max_resamples)",
    "groups_rolled_again": "groups drawn once more since the launcher was started, because drawing them had failed",
    "images_left_out": "pictures since the launcher was started that could not be scored and were not learned from",
    "skipped_steps": "optimizer updates since the start of the run that left the weights as they were: not finite",
    "cot_length": "semantic CoT, mean length in tokens",
    "cot_length/min": "shortest one",
    "cot_length/max": "longest one",
    "cot_length/clip_ratio": "share of semantic CoTs as long as rollout.max_cot_tokens, where they are cut off: raise "
    "that when this is not small",
    "tokens": "text and image tokens that count in the loss",
    "tokens_per_s": "of which the learner took so many a second",
    "staleness/mean": "learner's weight version minus the oldest one in a trajectory, mean over trajectories",
    "staleness/max": "the same, largest of all trajectories",
    "time/step_s": "wall time of the step, seconds; the sum of wait, learn and sync",
    "time/wait_s": "of which the learner waited for groups",
    "time/learn_s": "of which the learner computed",
    "time/sync_s": "of which new weights were on their way to the rollout workers",
    "time/rollout_s": "mean time a group took to roll; overlaps with other groups and with learning",
    "time/reward_s": "mean time from the end of a group's rollout to its last score; overlaps likewise",
    "critical/rollout_s": "what the run waited for since the end of the step before, seconds: the drawing of the "
    "step's last group, or a worker for it; the six add up to the run's wall time, evaluations left out",
    "critical/rewards_s": "the scores of the step's last group",
    "critical/queue_s": "that group's way through the trajectory queue",
    "critical/learn_s": "the learner's computing",
    "critical/sync_s": "weights on their way, also where the last group had to wait for them",
    "critical/other_s": "what the launcher does between two steps: metrics, pictures, the copy for a checkpoint",
    "busy/rollout": "share of that wall time in which groups were drawn, of whatever step, or waited for a worker",
    "busy/rewards": "the same of scoring",
    "busy/learner": "the same of the learner's computing",
    "pipeline_efficiency": "the greatest of the three: the slowest stage's time over the step's; 1 when it never waits",
    "groups_failed": "attempts at a group that failed since the start of the run",
    "checkpoints_failed": "tries at a checkpoint that failed since the launcher started",
    "scores_cached": "scores since the start of the run that were known from an earlier picture of the same content",
}
"""key -> meaning and unit."""

METRIC_PREFIXES: Final[Mapping[str, str]] = {
    "reward/": "of each reward of the config, over the pictures that it applies to: NAME its mean, NAME/std_in_group "
    "its spread, NAME/no_spread the share of groups without any, NAME/at_min and NAME/at_max the shares of scores at "
    "the step's least and greatest, NAME/perfect the share of full marks (1), see "
    "cluster.reports.reward_health; and of its replicas since the last step: "
    "NAME/queue_ms mean wait of a picture for its batch, NAME/batch_ms mean time of a batch, NAME/images_per_s what "
    "one replica scores while it is at work, NAME/failed pictures that it could not score, NAME/repeated pictures "
    "that were shown to it again because their batch had failed",
    "reward_correlation/": "of each pair of rewards, ONE~OTHER: Pearson's r within groups; null without spread",
    "evaluation/": "of each set of data.evaluation, after every data.evaluate_every_steps steps: SET its mean reward, "
    "SET/change that less the one before training, SET/NAME and SET/NAME/change the same of each reward: one that is "
    "hacked drifts away from the others",
    "benchmark/": "of each benchmark of data.benchmarks, every so many steps: NAME/MEASURE as rewards.benchmark has "
    "it, of the fixed part that is drawn, and NAME/missing the share of its pictures that could not be drawn or judged "
    "and count as the lowest score",
    "turns/": "with rollout.colocate, whose turn it was since the last step was told, seconds: turns/drawing_s the "
    "engines' (sampling, scores, weights on their way, evaluations), turns/to_learning_s engines on their way to sleep "
    "and the optimizer's state back to the learner, turns/learning_s the learner's, turns/to_drawing_s both ways back",
    "sync/": "with weight_sync.delta: sync/sent_mb the size of the version that was sent to the rollout workers, in "
    "10^6 bytes; where it was sent as changes, sync/changed_share the share of the values that the step has changed",
    "memory/": "what processes hold each for itself at the step, in 10^9 bytes: heaps and stacks, without the pages of "
    "files and of shared memory, such as Ray's object store. memory/launcher_gb the launcher, memory/rollout_gb the "
    "largest rollout worker with its engine, memory/rewards_gb the largest replica of a reward, memory/learner_gb the "
    "largest rank; memory/learner_gpu_gb what PyTorch reserves on its GPU. Of who has answered: nobody is waited for",
    "staleness/share_": "histogram: share of trajectories that lag so many weight versions",
}
"""Families of keys whose names depend on the config."""


def read_metrics(path: Path) -> list[MetricsRow]:
    """All steps of a metrics.jsonl, which may still be written to: a last line without its end is left out.

    Raises DataError, naming file and line, for a line that is no JSON object.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    rows: list[MetricsRow] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg}); remove the line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected an object, found {line[:40]}; remove the line")
        rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class RewardChange:
    """Mean reward on one evaluation set before and after training; None where it was not measured."""

    before: float | None
    after: float | None
    columns: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """The same of each reward by itself: one that rises while the others fall is being hacked."""
    perfect: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Of each reward, the share of pictures with full marks, before and after."""
    num_prompts: int | None = None


class SlowestReward(NamedTuple):
    """The reward that bounds how fast pictures are scored."""

    name: str
    images_per_s: float
    """Of one replica, while it is at a batch."""


class CriticalPath(NamedTuple):
    """Where the wall time of a run's steps went."""

    shares: Mapping[str, float]
    """rollout, rewards, queue, learn, sync and other -> share of it, from 0 to 1; they add up to 1."""
    efficiency: float
    """The metric `pipeline_efficiency`, over the same time."""

    def describe(self) -> str:
        """In a line, the greatest first; what is below one per cent is left out."""
        parts = sorted(self.shares.items(), key=lambda entry: -entry[1])
        told = [f"{name} {share:.0%}" for name, share in parts if share >= 0.01]
        return f"{', '.join(told)}; pipeline efficiency {self.efficiency:.2f}"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended. Becomes summary.json, where `evaluation` is spread over the keys NAME_reward_before,
    NAME_reward_after, NAME_rewards: {REWARD: {before, after}}, and NAME_perfect, likewise, the shares of full marks."""

    status: str
    """`finished`; `stopped`: by the user, after a checkpoint; `failed`: see `error`."""
    steps: int
    images: int
    """Pictures learned from."""
    wall_s: float
    """From the first step's start to the last one's end, evaluations left out."""
    images_per_s: float
    evaluation: Mapping[str, RewardChange]
    reward_first: float | None
    """Mean training reward of the first tenth of the steps, see `first_and_last_reward`."""
    reward_last: float | None
    checkpoint: str | None
    """Hugging Face folder of the trained policy."""
    groups_failed: int = 0
    """Attempts that failed; their groups were rolled again, but for those given up."""
    groups_given_up: int = 0
    slowest_reward: SlowestReward | None = None
    critical_path: CriticalPath | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "evaluation":
                for name, change in value.items():
                    tree[f"{name}_reward_before"] = finite_or_none(change.before)
                    tree[f"{name}_reward_after"] = finite_or_none(change.after)
                    for key, table in (("rewards", change.columns), ("perfect", change.perfect)):
                        tree[f"{name}_{key}"] = {
                            reward: {"before": finite_or_none(before), "after": finite_or_none(after)}
                            for reward, (before, after) in table.items()
                        }
            elif isinstance(value, SlowestReward | CriticalPath):
                tree[entry.name] = value._asdict()
            else:
                tree[entry.name] = finite_or_none(value) if isinstance(value, float) else value
        return tree


def slowest_reward(rows: Sequence[MetricsRow]) -> SlowestReward | None:
    """The reward that bounds how fast pictures are scored, by the mean of its metric `images_per_s`."""
    speeds: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("reward/") and key.endswith("/images_per_s") and value is not None:
                speeds.setdefault(key.removeprefix("reward/").removesuffix("/images_per_s"), []).append(value)
    means = [SlowestReward(name, sum(values) / len(values)) for name, values in speeds.items()]
    return min(means, key=lambda reward: reward.images_per_s, default=None)


def critical_path_of(rows: Sequence[MetricsRow]) -> CriticalPath | None:
    """Of the steps whose critical path is known."""
    parts = ("rollout", "rewards", "queue", "learn", "sync", "other")
    known = [row for row in rows if all(row.get(f"critical/{part}_s") is not None for part in parts)]
    seconds = {part: sum(row[f"critical/{part}_s"] or 0.0 for row in known) for part in parts}
    total = sum(seconds.values())
    if not total:
        return None
    busy = {"rollout": 0.0, "rewards": 0.0, "learner": 0.0}
    for row in known:
        period = sum(row[f"critical/{part}_s"] or 0.0 for part in parts)
        for stage in busy:
            busy[stage] += period * (row.get(f"busy/{stage}") or 0.0)
    return CriticalPath({part: value / total for part, value in seconds.items()}, max(busy.values()) / total)


def write_summary(path: Path, summary: RunSummary) -> None:
    """A reader sees the whole file or none."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(summary.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def first_and_last_reward(rows: Sequence[MetricsRow]) -> tuple[float | None, float | None]:
    """Mean of reward/mean over the first and over the last tenth of the steps, of at least one step each.

    (None, None) when no step has a reward.
    """
    rewards = [value for row in rows if (value := row.get("reward/mean")) is not None]
    if not rewards:
        return None, None
    count = max(1, len(rewards) // 10)
    return float(np.mean(rewards[:count])), float(np.mean(rewards[-count:]))


def finite_or_none(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(value)  # float() of NumPy's scalars, which JSON does not know
