"""Whole runs, as small as they can be: a random-weight tiny Janus, two groups of two a step, short plans.

`train` runs one inside the tests' shared Ray, as `cluster.launch` would, and keeps what the run told its log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from cluster.groups.roller import RolledGroup
from cluster.reports import Progress, RunLog, read_metrics
from cluster.reports.live import pulse
from cluster.reports.metrics import MetricsRow, RunSummary
from cluster.reports.metrics_file import MetricsWriter
from cluster.session import PrivateRedis
from cluster.state import Checkpoints, Registry, RunDirectory, RunState
from cluster.state.registry import RunSnapshot
from cluster.training.run import Run
from configs.schema import RunConfig
from rollout.prompts import load_prompts
from rollout.records import GroupRequest, ScoredGroup
from tests.tiny_models import tiny_janus_folder


def run_tree(name: str, directory: Path, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a tiny run, as a tree; `sections` are laid over it."""
    tree: dict[str, Any] = {
        "run": {"name": name, "dir": str(directory), "seed": 5, "steps": 2},
        "model": {"path": str(tiny_janus_folder()), "dtype": "float32"},
        "data": {"train": "shapes:train:40"},
        "algorithm": {"groups_per_step": 2, "group_size": 2},
        "rollout": {
            "engine": "transformers",
            "cpus_per_worker": 0.5,
            "threads_per_worker": 1,
            "max_prompt_tokens": 96,
            "max_cot_tokens": 6,
            "guidance_scale": 2.0,
            "max_num_seqs": 16,
            "kv_cache_gib": 0.05,
            "enforce_eager": True,
        },
        "rewards": [{"name": "shapes", "cpus_per_replica": 0.1}],
        "learner": {"micro_batch_size": 4, "lr": 1e-3, "cpus_per_rank": 0.5},
        "samples": {"num_pictures": 2},
    }
    for section, fields in sections.items():
        tree[section] = {**tree.get(section, {}), **fields} if isinstance(fields, Mapping) else fields
    return tree


async def do_nothing(log: RecordingLog, event: str, number: int) -> None:
    """The run is left alone."""


@dataclass(slots=True)
class RecordingLog(RunLog):
    """A run's log that also keeps the groups of each step, and lets a test act at a step or at a failure."""

    act: Callable[[RecordingLog, str, int], Awaitable[None]] = do_nothing
    """Called with (`step`, its number) after each step and (`failure`, number of failures) after each failure."""
    groups: dict[int, list[ScoredGroup]] = field(default_factory=dict)
    failures: list[tuple[GroupRequest, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    run: Run | None = None
    """So that a test can stop it."""

    def note(self, text: str) -> None:
        self.notes.append(text)
        RunLog.note(self, text)

    async def step(self, metrics: dict[str, float], rolled: Sequence[RolledGroup]) -> None:
        await RunLog.step(self, metrics, rolled)
        step = int(metrics["step"])
        self.groups[step] = [group.scored for group in rolled]
        await self.act(self, "step", step)

    async def failure(self, request: GroupRequest, reason: str) -> None:
        await RunLog.failure(self, request, reason)
        self.failures.append((request, reason))
        await self.act(self, "failure", len(self.failures))


@dataclass(slots=True)
class Outcome:
    """What is left of a run."""

    config: RunConfig
    directory: RunDirectory
    log: RecordingLog
    summary: RunSummary | None = None
    """None when the run raised."""
    error: BaseException | None = None
    snapshot: RunSnapshot | None = None
    """Of the registry at the end; None when the server was gone."""

    @property
    def rows(self) -> list[MetricsRow]:
        return read_metrics(self.directory.metrics_path)


async def train(
    tree: Mapping[str, Any],
    act: Callable[[RecordingLog, str, int], Awaitable[None]] = do_nothing,
    on_redis: Callable[[PrivateRedis], None] = lambda redis: None,
    resumed: RunDirectory | None = None,
) -> Outcome:
    """Run to the end in the Ray that this process is connected to; an error of the run is kept, not raised.

    on_redis: is given the run's private server before the run starts; resumed: the run to go on with.
    """
    config = RunConfig.model_validate(tree)
    directory = resumed or RunDirectory.create(config)
    limit = config.data.max_bad_lines
    evaluation = {name: load_prompts(source, limit) for name, source in config.data.evaluation.items()}
    with (
        PrivateRedis(directory.redis_dir) as redis,
        MetricsWriter(directory.metrics_path) as metrics,
        Progress(config.run.steps, StringIO()) as progress,
    ):
        on_redis(redis)
        async with Registry(redis.url, directory.name) as registry:
            checkpoints = Checkpoints(directory.checkpoints_dir, config.checkpoint, progress.note)
            checkpoint, state = await checkpoints.newest() or (None, RunState())
            log = RecordingLog(config, directory, registry, progress, metrics, checkpoints, act=act)
            outcome = Outcome(config, directory, log)
            try:
                prompts = load_prompts(config.data.train, limit)
                log.run = run = Run(config, prompts, evaluation, log, state, checkpoint)
                async with pulse(log.activity, lambda: run.pools, directory.path, every_s=1.0):
                    outcome.summary = await run.execute()
                outcome.snapshot = await registry.snapshot()
            except Exception as error:  # noqa: BLE001 - which error it is, is what the tests look at
                outcome.error = error
    return outcome
