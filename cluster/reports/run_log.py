"""All that a run tells: to people (screen, pictures, curves), to the registry, to Ray's dashboard.

The training loop says once what happened; this class spreads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from ray.exceptions import RayError

from cluster.groups.roller import RolledGroup
from cluster.learning import LearnerGroup
from cluster.pools.remote_errors import WorkerLostError, resolve
from cluster.reports.activity import Activity
from cluster.reports.curves import EvaluationPoint, draw_curves
from cluster.reports.metrics_file import MetricsWriter
from cluster.reports.progress import Progress
from cluster.reports.sample_file import write_sample_file
from cluster.reports.samples import SampleEntry, draw_samples
from cluster.reports.timeline import Timeline
from cluster.state import BackgroundCheckpoints, Checkpoints, Registry, RunDirectory, RunState
from cluster.state.ledger import GroupState
from cluster.state.outbox import Outbox
from cluster.telemetry.export import Exporter
from cluster.trackers import TrackedPicture, TrackedRun, Trackers
from configs.load import dump_config
from configs.schema import RunConfig
from configs.yaml_text import parse_yaml
from rollout.records import GroupRequest, ScoredGroup, UInt8Array

FETCH_TIMEOUT_S: Final = 60.0
"""For a group's pictures, before they count as lost."""
CLOSE_TIMEOUT_S: Final = 10.0


@dataclass(slots=True)
class RunLog:
    """Where a run writes down what it does."""

    config: RunConfig
    directory: RunDirectory
    registry: Registry
    progress: Progress
    metrics: MetricsWriter
    checkpoints: Checkpoints
    at_end: Callable[[str], Awaitable[None]] | None = None
    """Called with the run's name when it ends, well or not, while its actors still live."""
    num_failed_groups: int = 0
    evaluations: list[EvaluationPoint] = field(default_factory=list)
    activity: Activity = field(init=False)
    saving: BackgroundCheckpoints = field(init=False)
    trackers: Trackers = field(init=False)
    _timeline: Timeline = field(init=False)
    _outbox: Outbox = field(init=False)

    def __post_init__(self) -> None:
        name = self.directory.name
        watching = self.config.watching
        self._timeline = Timeline(self.directory.timeline_path if watching.timeline else None)
        self.activity = Activity(self.config, name, Exporter(name, is_on=watching.metrics), self._timeline)
        self.saving = BackgroundCheckpoints(
            self.checkpoints, self.config.checkpoint, self.note, lambda ok: self.activity.checkpoint(is_written=ok)
        )
        folder, config = self.directory.path / "trackers", parse_yaml(dump_config(self.config), "config")
        self.trackers = Trackers(watching.trackers, TrackedRun(name, self.directory.key, folder, config))
        self._outbox = Outbox(self.config.registry.patience_s, self.note)

    def note(self, text: str) -> None:
        """A line for the user."""
        self.progress.note(text)
        self.activity.note(text)

    def check(self) -> None:
        """Raises BicotError when the registry was lost, or refused what it was told: between two steps, when no work
        is lost with it."""
        if self._outbox.error is not None:
            raise self._outbox.error

    async def status(self, status: str) -> None:
        """The run as a whole is at something else."""
        await self._outbox.tell(lambda: self.registry.set_run(status))

    async def worker(self, worker_id: str, state: str) -> None:
        """A worker of a pool changed its state."""
        self.activity.worker(worker_id, state)
        kind = worker_id.rpartition("-")[0]
        if state == "DEAD":
            await self._outbox.tell(lambda: self.registry.remove_worker(worker_id))
        else:
            await self._outbox.tell(lambda: self.registry.set_worker(worker_id, kind, state))

    async def group(self, request: GroupRequest, state: GroupState) -> None:
        """A group of the training run changed its state."""
        self.activity.group(request, state)
        ledger, prompt_id = self.registry.ledger, request.prompt.prompt_id
        await self._outbox.tell(lambda: ledger.move(request.sequence, state, request.attempt, prompt_id=prompt_id))

    async def given_up(self, request: GroupRequest, reason: str) -> None:
        """A group's prompt is given up after its last attempt."""
        self.activity.group(request, GroupState.GIVEN_UP)
        ledger, prompt_id = self.registry.ledger, request.prompt.prompt_id
        await self._outbox.tell(lambda: ledger.give_up(request.sequence, request.attempt, prompt_id, reason))

    async def failure(self, request: GroupRequest, reason: str) -> None:
        """An attempt at a group failed."""
        self.num_failed_groups += 1
        self.activity.group(request, GroupState.FAILED)
        self.note(f"group {request.sequence} ({request.prompt.prompt_id}), attempt {request.attempt + 1}: {reason}")
        if request.sequence >= 0:
            ledger = self.registry.ledger
            news = partial(ledger.move, request.sequence, GroupState.FAILED, request.attempt, reason=reason)
            await self._outbox.tell(news)

    async def version(self, version: int) -> None:
        """All rollout workers hold `version`."""
        self.activity.version(version)
        await self._outbox.tell(lambda: self.registry.set_version(version))

    async def rewind(self, state: RunState) -> None:
        """The run goes on from an earlier step: what was told of later ones no longer holds. Raises RegistryError
        when the registry stays away for longer than its patience."""
        self.num_failed_groups = state.num_failed_groups
        self.activity.rewind(state.step)
        self.trackers.rewind(state.step)
        try:
            self.metrics.rewind(state.step)
        except OSError as error:
            self.note(f"metrics.jsonl still holds steps that are made again, until it can be written: {error}")
        num_trained = state.step * self.config.algorithm.groups_per_step
        await self._outbox.insist(lambda: self.registry.ledger.rewind(num_trained))
        await self._outbox.tell(lambda: self.registry.set_progress(state.step, state.step))

    def write(self, metrics: dict[str, float]) -> None:
        """Write down the metrics of an optimizer step. A disk that takes no more is a note, and tried again."""
        metrics["groups_failed"] = self.num_failed_groups
        metrics["checkpoints_failed"] = self.saving.num_failed
        self.trackers.metrics(int(metrics["step"]), metrics)
        for warning in self.trackers.take_warnings():
            self.note(warning)
        try:
            if not self.metrics.write(metrics):
                self.note(
                    f"{self.directory.path} was removed or replaced while the run goes on; its metrics and its config "
                    "are written again, what else it held is gone"
                )
                self.directory.make_again(self.config)
        except OSError as error:
            self.note(f"the metrics of this step are not written yet: {error}")

    async def step(self, metrics: dict[str, float], rolled: Sequence[RolledGroup]) -> None:
        """Tell of an optimizer step, made from these groups, whose metrics are written down."""
        step = int(metrics["step"])
        self.progress.step(metrics)
        self.activity.step(metrics, rolled)
        attempts = {r.sequence: r.attempt for r in (group.scored.rollout.request for group in rolled)}
        await self._outbox.tell(lambda: self.registry.ledger.train(attempts, step))
        reward = {"reward": metrics["reward/mean"]}
        version = int(metrics["weight_version"])
        await self._outbox.tell(lambda: self.registry.set_progress(step, version, reward))
        self._flush_timeline()
        if step % self.config.samples.every_steps == 0 or step == self.config.run.steps:
            await self._draw(step, metrics["reward/mean"], rolled)

    async def begin_checkpoint(self, learner: LearnerGroup, state: RunState) -> None:
        """Where a checkpoint is due after this step, begin it; see `BackgroundCheckpoints.after_step`."""
        await self.saving.after_step(learner, state, lambda: self.activity.phase("checkpointing"))

    async def draw_curves(self) -> None:
        """Bring curves.png up to date; nothing before the first step."""
        if self.metrics.rows:
            rows = list(self.metrics.rows)
            await asyncio.to_thread(draw_curves, rows, self.directory.curves_path, self.evaluations)

    def end_timeline(self) -> None:
        """Write what is left of it. Raises OSError."""
        self._timeline.close()

    async def close(self) -> None:
        """Tell the registry what it has not been told yet, as far as it answers soon."""
        if self.at_end is not None:
            await self.at_end(self.directory.name)
        await self._outbox.flush(CLOSE_TIMEOUT_S)
        await self._outbox.close()

    def _flush_timeline(self) -> None:
        try:
            self._timeline.flush()
        except OSError as error:
            self.progress.note(f"{self.directory.timeline_path.name} lacks what happened since: {error}")

    async def _draw(self, step: int, reward: float, rolled: Sequence[RolledGroup]) -> None:
        """Pictures are for people: that they cannot be had, or drawn, does not end a run."""
        title = f"step {step}: mean reward {reward:.2f}"
        try:
            if samples := await samples_of(rolled, self.config.samples.num_pictures):
                path = self.directory.samples_path(step)
                await asyncio.to_thread(draw_samples, path, samples, title)
                await asyncio.to_thread(write_sample_file, path.with_suffix(".json"), title, samples, step=step)
                self.trackers.pictures(step, [TrackedPicture(entry.picture, _caption(entry)) for entry in samples])
            else:
                self.note(f"the pictures of step {step} went with the nodes that drew them; there are no samples of it")
            await self.draw_curves()
        except OSError as error:
            self.note(f"the samples or curves of step {step} are not drawn: {error}")


async def samples_of(rolled: Sequence[RolledGroup], num_pictures: int) -> list[SampleEntry]:
    """The first picture of as many groups as wanted, or more of each when there are fewer groups; without the groups
    whose pictures are lost."""
    per_group = -(-num_pictures // len(rolled))
    samples: list[SampleEntry] = []
    for group in rolled:
        if len(samples) < num_pictures and (pictures := await _pictures_of(group)) is not None:
            scored_first = np.argsort(np.isnan(group.scored.rewards), kind="stable")
            samples.extend(_sample(group.scored, index, pictures[index]) for index in scored_first[:per_group].tolist())
    return samples[:num_pictures]


async def first_samples(rolled: Sequence[RolledGroup]) -> dict[int, SampleEntry]:
    """Sequence -> first picture of each group, without those whose pictures are lost."""
    samples: dict[int, SampleEntry] = {}
    for group in rolled:
        if (pictures := await _pictures_of(group)) is not None:
            samples[group.scored.rollout.request.sequence] = _sample(group.scored, 0, pictures[0])
    return samples


async def _pictures_of(group: RolledGroup) -> UInt8Array | None:
    """uint8 [G, height, width, 3]; None when they went with the node that drew them, or cannot be had from it."""
    fetching = asyncio.ensure_future(resolve(group.pictures))
    try:
        await asyncio.wait({fetching}, timeout=FETCH_TIMEOUT_S)
        return fetching.result() if fetching.done() else None
    except (RayError, WorkerLostError):
        return None
    finally:
        fetching.cancel()


def _sample(group: ScoredGroup, index: int, picture: UInt8Array) -> SampleEntry:
    return SampleEntry(
        picture=picture,
        prompt=group.rollout.request.prompt.text,
        plan=group.rollout.trajectories[index].cot_text,
        score=float(group.rewards[index]),
        explanation=group.explanations[index],
        rewards={
            name: float(column[index]) for name, column in group.reward_columns.items() if np.isfinite(column[index])
        },
    )


def _caption(entry: SampleEntry) -> str:
    return f"{entry.prompt} | {entry.score:.2f} | {entry.plan}" if entry.plan else f"{entry.prompt} | {entry.score:.2f}"
