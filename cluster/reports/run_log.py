"""All that a run tells: to people (screen, pictures, curves), to the registry, to Ray's dashboard.

The training loop says once what happened; this class spreads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.groups.roller import RolledGroup
from cluster.learning import LearnerGroup
from cluster.reports.curves import EvaluationPoint, draw_curves
from cluster.reports.metrics import MetricsWriter, read_metrics
from cluster.reports.progress import Progress
from cluster.reports.ray_metrics import RayGauges
from cluster.reports.samples import SampleEntry, draw_samples
from cluster.state import Checkpoints, Registry, RunDirectory, RunState
from cluster.state.ledger import GroupState
from configs.errors import RegistryError
from configs.schema import RunConfig
from rollout.records import GroupRequest, ScoredGroup, UInt8Array


@dataclass(slots=True)
class RunLog:
    """Where a run writes down what it does."""

    config: RunConfig
    directory: RunDirectory
    registry: Registry
    progress: Progress
    metrics: MetricsWriter
    checkpoints: Checkpoints
    num_failed_groups: int = 0
    evaluations: list[EvaluationPoint] = field(default_factory=list)
    _gauges: RayGauges = field(init=False)
    _registry_error: RegistryError | None = None

    def __post_init__(self) -> None:
        self._gauges = RayGauges(self.directory.name)

    def note(self, text: str) -> None:
        """A line for the user."""
        self.progress.note(text)

    def check(self) -> None:
        """Raises RegistryError when the registry was lost: between two steps, when no work is lost with it."""
        if self._registry_error is not None:
            raise self._registry_error

    async def worker(self, worker_id: str, state: str) -> None:
        """A worker of a pool changed its state."""
        kind = worker_id.rpartition("-")[0]
        if state == "DEAD":
            await self._tell(self.registry.remove_worker(worker_id))
        else:
            await self._tell(self.registry.set_worker(worker_id, kind, state))

    async def group(self, request: GroupRequest, state: GroupState) -> None:
        """A group of the training run changed its state."""
        prompt_id = request.prompt.prompt_id
        await self._tell(self.registry.ledger.move(request.sequence, state, request.attempt, prompt_id=prompt_id))

    async def given_up(self, request: GroupRequest, reason: str) -> None:
        """A group's prompt is given up after its last attempt."""
        news = self.registry.ledger.give_up(request.sequence, request.attempt, request.prompt.prompt_id, reason)
        await self._tell(news)

    async def failure(self, request: GroupRequest, reason: str) -> None:
        """An attempt at a group failed."""
        self.num_failed_groups += 1
        self.note(f"group {request.sequence} ({request.prompt.prompt_id}), attempt {request.attempt + 1}: {reason}")
        if request.sequence >= 0:
            ledger = self.registry.ledger
            await self._tell(ledger.move(request.sequence, GroupState.FAILED, request.attempt, reason=reason))

    async def version(self, version: int) -> None:
        """All rollout workers hold `version`."""
        await self._tell(self.registry.set_version(version))

    async def rewind(self, state: RunState) -> None:
        """The run goes on from an earlier step: what was told of later ones no longer holds."""
        self.num_failed_groups = state.num_failed_groups
        self.metrics.rewind(state.step)
        num_trained = state.step * self.config.algorithm.groups_per_step
        await self.registry.ledger.rewind(num_trained)
        await self.registry.set_progress(state.step, state.step)

    def write(self, metrics: dict[str, float]) -> None:
        """Write down the metrics of an optimizer step."""
        metrics["groups_failed"] = self.num_failed_groups
        self.metrics.write(metrics)

    async def step(self, metrics: dict[str, float], rolled: Sequence[RolledGroup]) -> None:
        """Tell of an optimizer step, made from these groups, whose metrics are written down."""
        step = int(metrics["step"])
        self.progress.step(metrics)
        self._gauges.update(metrics)
        requests = [group.scored.rollout.request for group in rolled]
        await self._tell(self.registry.ledger.train({r.sequence: r.attempt for r in requests}, step))
        reward = {"reward": metrics["reward/mean"]}
        await self._tell(self.registry.set_progress(step, int(metrics["weight_version"]), reward))
        if step % self.config.samples.every_steps == 0 or step == self.config.run.steps:
            await self._draw(step, metrics["reward/mean"], rolled)

    async def checkpoint(self, learner: LearnerGroup, state: RunState) -> Path:
        """Write a checkpoint; returns its folder."""
        return await self.checkpoints.save(learner, state)

    async def draw_curves(self) -> None:
        """Bring curves.png up to date; nothing before the first step."""
        if not read_metrics(self.directory.metrics_path):
            return
        await asyncio.to_thread(draw_curves, self.directory.metrics_path, self.directory.curves_path, self.evaluations)

    async def _tell(self, news: Coroutine[Any, Any, object]) -> None:
        """Tell the registry. It only watches, so its loss must not tear a step apart: `check` raises it later."""
        if self._registry_error is not None:
            news.close()
            return
        try:
            await news
        except RegistryError as error:
            self._registry_error = error

    async def _draw(self, step: int, reward: float, rolled: Sequence[RolledGroup]) -> None:
        samples = await samples_of(rolled, self.config.samples.num_pictures)
        title = f"step {step}: mean reward {reward:.2f}"
        await asyncio.to_thread(draw_samples, self.directory.samples_path(step), samples, title)
        await self.draw_curves()


async def samples_of(rolled: Sequence[RolledGroup], num_pictures: int) -> list[SampleEntry]:
    """The first picture of as many groups as wanted, or more of each when there are fewer groups."""
    per_group = -(-num_pictures // len(rolled))
    samples: list[SampleEntry] = []
    for group in rolled[:num_pictures]:
        pictures = await group.pictures
        scored_first = np.argsort(np.isnan(group.scored.rewards), kind="stable")
        samples.extend(_sample(group.scored, index, pictures[index]) for index in scored_first[:per_group].tolist())
    return samples[:num_pictures]


def _sample(group: ScoredGroup, index: int, picture: UInt8Array) -> SampleEntry:
    return SampleEntry(
        picture=picture,
        prompt=group.rollout.request.prompt.text,
        plan=group.rollout.trajectories[index].cot_text,
        score=float(group.rewards[index]),
        explanation=group.explanations[index],
    )
