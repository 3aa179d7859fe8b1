"""What a launcher puts around a run: its registry, its checkpoint, its Ray, and the signals that end it.

Redis ─► registry ─► newest checkpoint ─► Ray ─► Run.execute ─► exit code
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.planning.object_store import object_store_size, shortage, shortage_on_nodes
from cluster.report.publishing import published
from cluster.reports import Progress, RunLog
from cluster.reports.live import pulse
from cluster.reports.metrics import RunSummary
from cluster.reports.metrics_file import MetricsWriter
from cluster.session import PrivateRedis, StopSignals, plan_placement, ray_session
from cluster.session.bounded_loop import run_bounded
from cluster.session.local_ray import User
from cluster.session.nodes import check_registry_is_reached, usable_nodes
from cluster.session.ray_address import is_local
from cluster.state import Checkpoints, Registry, RunDirectory, RunState
from cluster.training.run import Run
from configs.errors import BicotError, ConfigError
from configs.schema import RunConfig
from rollout.prompts import PromptSet


@dataclass(frozen=True, slots=True)
class Observer:
    """Who looks at a run from outside: a rehearsal."""

    make_progress: Callable[[int], Progress] = Progress
    """Makes the display of a run of so many steps."""
    at_end: Callable[[str], Awaitable[None]] | None = None
    """See `RunLog.at_end`."""


@dataclass(frozen=True, slots=True)
class LaunchedRun:
    """One life of the run in `directory`, whose lock the caller holds."""

    config: RunConfig
    """With the values of its secrets."""
    train: PromptSet
    evaluation: Mapping[str, PromptSet]
    directory: RunDirectory
    signals: StopSignals
    is_new: bool
    """False: it goes on from its newest checkpoint."""
    observer: Observer = Observer()

    def to_the_end(self) -> int:
        """Run; returns the exit code. Raises BicotError when the run fails, SystemExit when a signal came early."""
        directory = self.directory
        with ExitStack() as stack:
            progress = stack.enter_context(self.observer.make_progress(self.config.run.steps))
            metrics = stack.enter_context(MetricsWriter(directory.metrics_path))
            progress.note(directory.note or f"run directory: {directory.path}")
            progress.note(f"if it is interrupted: {directory.resume_command}")
            for advice in self.config.advice:
                progress.note(advice)
            progress.stage("starting Redis and Ray")
            redis_url = self.config.registry.redis_url
            if redis_url is None:
                redis_url = stack.enter_context(PrivateRedis(directory.redis_dir, self.config.registry.redis_port)).url
            self.signals.check()
            try:
                return run_bounded(self._stoppable(redis_url, progress, metrics))
            except asyncio.CancelledError:  # told to stop while nothing was made yet
                return self.signals.exit_code

    async def _stoppable(self, redis_url: str, progress: Progress, metrics: MetricsWriter) -> int:
        this = asyncio.current_task()
        assert this is not None
        with self.signals.calling(this.cancel):
            summary = await self._run(redis_url, progress, metrics)
        if summary is None:  # told twice to stop: without its last checkpoint
            progress.note(f"go on with it: {self.directory.resume_command}")
            return self.signals.exit_code
        progress.finish(summary, self.directory.path)
        if summary.status == "stopped":
            progress.note(f"go on with it: {self.directory.resume_command}")
        elif summary.checkpoint is not None:
            for command in self._next_commands(summary.checkpoint):
                progress.note(command)
        return self.signals.exit_code if summary.status == "stopped" else 0

    def _next_commands(self, checkpoint: str) -> tuple[str, str]:
        """What to try with a policy that is trained: drawing a prompt that training did not see, and training on."""
        prompt = next(iter(self.evaluation.values()), self.train).prompts[0]
        drawing = ("python", "-m", "rollout.generate", "--model", checkpoint, "--prompt", prompt.text)
        steps = 2 * self.config.run.steps
        return (
            f"draw with it: {shlex.join(drawing)} --output-dir pictures",
            f"train it on: {self.directory.resume_command} --set run.steps={steps}",
        )

    async def _run(self, redis_url: str, progress: Progress, metrics: MetricsWriter) -> RunSummary | None:
        config, directory = self.config, self.directory
        checkpoints = Checkpoints(directory.checkpoints_dir, config.checkpoint, progress.note)
        async with Registry(redis_url, directory.key) as registry:
            if self.is_new:
                await registry.clear()
            await registry.clear_workers()
            checkpoint, state = await self._beginning(checkpoints)
            if checkpoint is not None:
                progress.note(f"going on from step {state.step} ({checkpoint})")
            if is_local(config.cluster.address) and (complaint := shortage(config)) is not None:
                progress.note(complaint)
            user = User(progress.note, self.signals.check, self.signals.held)
            size = object_store_size(config)
            with ray_session(config.cluster, plan_placement(config), directory.logs_dir, user, size) as place:
                await registry.set_place(str(place) or None, place.job)
                nodes = usable_nodes()
                check_registry_is_reached(config, len(nodes))
                if not is_local(config.cluster.address):
                    stores = [size for node in nodes if (size := node["Resources"].get("object_store_memory"))]
                    if (complaint := shortage_on_nodes(config, stores)) is not None:
                        progress.note(complaint)
                log = RunLog(config, directory, registry, progress, metrics, checkpoints, self.observer.at_end)
                run = Run(config, self.train, self.evaluation, log, state, checkpoint)
                with self.signals.calling(run.stop):
                    try:
                        async with self._watched(log, run):
                            return await run.execute()
                    except asyncio.CancelledError:
                        return None
                    except BicotError:
                        progress.note(f"what the processes printed: {directory.logs_dir}, on a cluster Ray's dashboard")
                        progress.note(f"go on with it, when that is mended: {directory.resume_command}")
                        raise

    @asynccontextmanager
    async def _watched(self, log: RunLog, run: Run) -> AsyncIterator[None]:
        """Meanwhile those who watch are told of the run, unless nobody is to be."""
        async with AsyncExitStack() as stack:
            if self.config.watching.metrics:
                if (url := self.config.registry.redis_url) is not None:  # a private one is reached from here alone
                    await stack.enter_async_context(published(log.activity.tree, self.directory, url, log.note))
                await stack.enter_async_context(pulse(log.activity, lambda: run.pools, self.directory.path))
            yield

    async def _beginning(self, checkpoints: Checkpoints) -> tuple[Path | None, RunState]:
        """The checkpoint to go on from. A new run has none, whatever lies at checkpoint.url."""
        newest = None if self.is_new else await checkpoints.newest()
        checkpoint, state = newest or (None, RunState())
        if state.step > self.config.run.steps:
            raise ConfigError(
                f"--set run.steps={self.config.run.steps}: this run has made {state.step} steps already; "
                "set run.steps to more"
            )
        return checkpoint, state
