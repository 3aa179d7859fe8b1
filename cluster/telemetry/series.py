"""Every series that a run shows to Prometheus, as data: the documentation, the board and the alerts are held to it.

Ray puts `ray_` in front of each name, and `_total` behind that of a counter. All have the label `run`. Beside them,
each key of a step's metrics (`cluster.reports.metrics`) is a gauge of its own, named by `gauge_of`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

SECONDS: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
TOKENS: Final = (8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 512.0)
REWARDS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 3.0, 5.0)

PHASES: Final = (
    *("starting", "waiting", "learning", "syncing", "reporting", "evaluating", "checkpointing", "restarting"),
    "finishing",
)
"""What a run is at, one at a time. `waiting` is for groups; `reporting` writes metrics and pictures of a step."""
GROUP_EVENTS: Final = ("dispatched", "scored", "queued", "trained", "failed", "given_up")
WORKER_STATES: Final = ("JOINING", "STALE", "READY", "SUSPECT", "DRAINING")


@dataclass(frozen=True, slots=True)
class Series:
    """One series, or one a value of its labels."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    """With its unit."""
    labels: tuple[str, ...] = ()
    """Besides `run`."""
    boundaries: tuple[float, ...] = ()
    """Upper ends of a histogram's buckets, greater than 0."""

    @property
    def exported(self) -> str:
        """The name that Prometheus has it under; of a histogram without `_bucket`."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


SERIES: Final = tuple(
    Series(*row)
    for row in (
        # What a run has made.
        ("bicot_steps", "counter", "optimizer steps made since the launcher started"),
        ("bicot_images_learned", "counter", "pictures learned from"),
        ("bicot_tokens_learned", "counter", "text and image tokens learned from"),
        ("bicot_groups", "counter", "groups that came so far: " + ", ".join(GROUP_EVENTS), ("event",)),
        ("bicot_worker_deaths", "counter", "workers that died, hung or were replaced", ("pool",)),
        ("bicot_restarts", "counter", "learners started again from a checkpoint"),
        ("bicot_checkpoints", "counter", "checkpoints, by outcome: written, failed", ("outcome",)),
        ("bicot_phase_seconds", "counter", "seconds the run spent in each phase", ("phase",)),
        # How long it takes, and what comes of it.
        ("bicot_rollout_seconds", "histogram", "a group's rollout, seconds", (), SECONDS),
        ("bicot_reward_seconds", "histogram", "from a group's rollout to its last score, seconds", (), SECONDS),
        ("bicot_learn_seconds", "histogram", "the learner's work on a step, seconds", (), SECONDS),
        ("bicot_sync_seconds", "histogram", "new weights to the rollout workers, seconds", (), SECONDS),
        ("bicot_cot_tokens", "histogram", "length of a semantic CoT, tokens", (), TOKENS),
        ("bicot_reward", "histogram", "combined reward of a picture", (), REWARDS),
        # What it is at.
        ("bicot_phase", "gauge", "1 for the phase the run is in, 0 for all others", ("phase",)),
        ("bicot_alive_unixtime", "gauge", "when the launcher last told of itself, Unix time"),
        ("bicot_last_step_unixtime", "gauge", "when the last step was made; before the first, when the run began"),
        ("bicot_last_checkpoint_unixtime", "gauge", "when the last checkpoint was written; before the first, as above"),
        ("bicot_steps_planned", "gauge", "run.steps of the config"),
        ("bicot_workers", "gauge", "workers by pool and health", ("pool", "state")),
        ("bicot_pool_size", "gauge", "workers that a pool is to have", ("pool",)),
        ("bicot_pool_calls", "gauge", "calls that a pool's workers are at", ("pool",)),
        ("bicot_pool_calls_waiting", "gauge", "calls that wait for a worker with room", ("pool",)),
        ("bicot_groups_in_flight", "gauge", "groups under way, by what they wait for", ("waiting_for",)),
        ("bicot_disk_free_bytes", "gauge", "free on the run directory's disk"),
        ("bicot_disk_size_bytes", "gauge", "size of that disk"),
        ("bicot_parity_limit", "gauge", "mean |difference| above which parity is broken, nats a token", ("tokens",)),
        ("bicot_run_info", "gauge", "1; the labels say what runs", ("version", "model", "config")),
        # vLLM's own figures, told by each rollout worker itself.
        ("bicot_engine_running", "gauge", "sequences in vLLM's batch", ("worker",)),
        ("bicot_engine_waiting", "gauge", "sequences that wait for a place in it", ("worker",)),
        ("bicot_engine_kv_cache_usage", "gauge", "share of the KV cache's blocks in use, 0 to 1", ("worker",)),
        ("bicot_engine_weight_version", "gauge", "version of the weights that sample", ("worker",)),
        ("bicot_engine_prompt_tokens", "counter", "tokens prefilled", ("worker",)),
        ("bicot_engine_generated_tokens", "counter", "tokens sampled", ("worker",)),
        ("bicot_engine_preemptions", "counter", "sequences put back, for want of room or for new weights", ("worker",)),
        ("bicot_engine_prefix_queries", "counter", "tokens looked up in the prefix cache", ("worker",)),
        ("bicot_engine_prefix_hits", "counter", "tokens found there", ("worker",)),
        ("bicot_engine_weight_pause_seconds", "counter", "seconds sampling stood still for new weights", ("worker",)),
        ("bicot_unfit_deltas", "counter", "weight versions whose changes did not fit, and came whole", ("worker",)),
    )
)  # fmt: skip
BY_NAME: Final[Mapping[str, Series]] = {series.name: series for series in SERIES}


@dataclass(frozen=True, slots=True)
class Family:
    """Step metrics whose names hold a name of the config: it becomes a label."""

    pattern: re.Pattern[str]
    name: str
    """With `{suffix}` for what stands behind."""
    labels: tuple[str, ...]
    key: str
    """The metrics as `METRIC_PREFIXES` has them."""


FAMILIES: Final = tuple(
    Family(re.compile(pattern), name, labels, key)
    for pattern, name, labels, key in (
        (r"reward/(?P<reward>[^/]+)", "bicot_reward_score", ("reward",), "reward/NAME"),
        (r"reward/(?P<reward>[^/]+)/(?P<suffix>\w+)", "bicot_reward_score_{suffix}", ("reward",), "reward/NAME/…"),
        (r"reward_correlation/(?P<reward>.+)", "bicot_reward_correlation", ("reward",), "reward_correlation/ONE~OTHER"),
        (r"evaluation/(?P<set>[^/]+)", "bicot_evaluation", ("set",), "evaluation/SET"),
        (r"evaluation/(?P<set>[^/]+)/change", "bicot_evaluation_change", ("set",), "evaluation/SET/change"),
        (
            r"evaluation/(?P<set>[^/]+)/(?P<reward>[^/]+)",
            "bicot_evaluation_reward",
            ("set", "reward"),
            "evaluation/SET/NAME",
        ),
        (
            r"evaluation/(?P<set>[^/]+)/(?P<reward>[^/]+)/change",
            "bicot_evaluation_reward_change",
            ("set", "reward"),
            "evaluation/SET/NAME/change",
        ),
        (r"memory/(?P<process>\w+)_gb", "bicot_memory_gb", ("process",), "memory/…_gb"),
        (r"staleness/share_(?P<lag>\d+)", "bicot_staleness_share", ("lag",), "staleness/share_…"),
    )
)


def gauge_of(key: str, plain: frozenset[str]) -> tuple[str, dict[str, str]]:
    """Name and labels of the gauge that carries a step's metric.

    plain: keys that are no family's, such as `reward/mean`; `kl/cot` becomes `bicot_kl_cot`.
    """
    if key not in plain:
        for family in FAMILIES:
            if match := family.pattern.fullmatch(key):
                found = match.groupdict()
                return family.name.format(suffix=found.pop("suffix", "")), found
    return "bicot_" + re.sub(r"\W", "_", key, flags=re.ASCII), {}
