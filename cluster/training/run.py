"""One life of a run: from its start, or from a checkpoint, to its end.

    warm start (cached) ─► start learner, rollout workers, rewards ─► evaluate ─► Pipeline ─► evaluate
                                ▲                                                    │ └─► checkpoint, summary
                                └── the learner again, from the last checkpoint ◄────┘ a rank died

`stop` ends it in good order at any point: while training after the step that is being made, with a
checkpoint; before that at once.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.actors import spawn_rollout
from cluster.actors.dedicated_placement import OwnPlacement, SharedPlaces
from cluster.groups import GroupRoller, QueueClient, RewardPools
from cluster.learning import LearnerGroup, Turns, WeightSync, make_turns, make_weight_sync
from cluster.learning.learner_group import LearnerLostError
from cluster.learning.rank_placement import place_ranks
from cluster.pools import ActorPool, Elasticity, Patience, PoolHooks
from cluster.pools.cancellation import end_tasks
from cluster.pools.elasticity import ElasticPool
from cluster.pools.remote_errors import first_line, own_error
from cluster.reports import RunLog
from cluster.reports.metrics import RunSummary
from cluster.state import RunState
from cluster.state.run_state import digest_of
from cluster.training.pipeline import Machinery, Pipeline
from cluster.training.preparation import StartingModel, prompts_that_fit
from cluster.training.run_evaluation import RunEvaluation
from cluster.training.run_finish import leave_behind, noted, summarize
from configs.errors import BicotError, CheckpointError, LearnerError, RegistryError, RunError
from configs.schema import RunConfig
from rollout.prompts import PromptSet, PromptSource
from rollout.prompts.source import summarize_skipped


@dataclass(slots=True)
class Run:
    """Trains one policy. `train` and `evaluation` are the prompts; `log` hears everything."""

    config: RunConfig
    train: PromptSet
    evaluation: Mapping[str, PromptSet]
    log: RunLog
    state: RunState = field(default_factory=RunState)
    """Where the run begins, and later where it last stood still: between two pipelines."""
    checkpoint: Path | None = None
    """The one that goes with `state`; None at the start of a run."""
    _learner: LearnerGroup = field(init=False)
    _rollouts: ActorPool = field(init=False)
    _rewards: RewardPools = field(init=False)
    _weights: WeightSync = field(init=False)
    _turns: Turns = field(init=False)
    _placement: OwnPlacement | SharedPlaces = field(init=False)
    _model: StartingModel = field(init=False)
    _pipeline: Pipeline | None = field(default=None, init=False)
    _task: asyncio.Task[Any] | None = field(default=None, init=False)
    _is_training: bool = field(default=False, init=False)
    _is_finishing: bool = field(default=False, init=False)
    _is_stopping: bool = field(default=False, init=False)
    _evaluation: RunEvaluation = field(init=False)
    _live_weights: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    """Set when workers that join can be given the weights at which the run begins."""
    _num_restarts: int = field(default=0, init=False)
    _spawning: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)  # rollouts before rewards, see PoolHooks

    def __post_init__(self) -> None:
        run_id = self.log.directory.name
        self._learner = LearnerGroup(self.config, run_id, note=self.log.note)
        self._model = StartingModel(self.config, self.log)
        self._evaluation = RunEvaluation(self.log)
        cluster = self.config.cluster
        patience = Patience(self.config.run.start_timeout_s, cluster.heartbeat_s, cluster.heartbeat_timeout_s)
        self._rewards = RewardPools(
            self.config.rewards,
            self.config.algorithm.group_size,
            run_id,
            self._hooks,
            patience,
            cache_url=self.log.registry.url,
            one_group_a_time=self.config.run.deterministic,
        )
        self._weights = make_weight_sync(self.config, self.log.note)
        self._placement = SharedPlaces() if self.config.rollout.colocate else OwnPlacement()
        self._rollouts = ActorPool(
            "rollout",
            self.config.rollout.num_workers.min,
            self.config.rollout.max_groups_per_worker,
            replace(
                self._hooks(self._spawn_rollout, self._start_rollout),
                weights=self._weights,
                end=self._placement.end,
                loading=lambda: self._turns.loading(),
                give_up=ray.cancel,
            ),
            patience,
        )
        self._turns = make_turns(self.config, self._rollouts, lambda: self._learner)

    @property
    def pools(self) -> tuple[ActorPool, ...]:
        """Of rollout workers, and of each reward's replicas."""
        return (self._rollouts, *(elastic.pool for elastic in self._rewards.elastic_pools))

    def stop(self) -> None:
        """End in good order; a second call ends at once."""
        again, self._is_stopping = self._is_stopping, True
        if self._task is not None and (again or not (self._is_training or self._is_finishing)):
            self._task.cancel()
        elif self._is_training and self._pipeline is not None:
            self.log.note("stopping after this step; the checkpoint follows (once more to stop at once)")
            self._pipeline.stop()
        elif self._is_finishing:
            self.log.note("the last checkpoint is being written (once more to end without it)")

    async def execute(self) -> RunSummary:
        """Run; returns the summary that was written. What ended a run early is raised after its summary is written."""
        self._task = asyncio.current_task()
        status, error = "failed", None
        try:
            await self.log.registry.set_run("starting", self.config.run.steps, self.config.algorithm.groups_per_step)
            await self.log.rewind(self.state)
            await self._start()
            elasticity = asyncio.create_task(self._make_elasticity().run(), name="elasticity")
            try:
                finished = await self._train()
            finally:
                await end_tasks({elasticity})
            status = "finished" if finished else "stopped"
        except asyncio.CancelledError:
            status = "stopped"
        except BaseException as failure:  # noqa: BLE001 - it is raised again, as bicot's own where it was Ray's
            error = own_error(failure)
            raise error from failure.__cause__ if error is failure else failure
        finally:
            self._is_finishing = True
            summary = await self._finish(status, error)
        return summary

    async def _start(self) -> None:
        await self._place_learner()
        await self._model.prepare(self._learner)
        self.log.progress.stage("starting learner, rollout workers and rewards")
        timeout_s = self.config.run.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as starting:
                starting.create_task(self._drop_unfit_prompts())
                starting.create_task(self._set_up_learner())
                starting.create_task(self._rollouts.start())
                starting.create_task(self._rewards.start())
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            raise first from first.__cause__  # the others were cancelled because of it
        except TimeoutError as error:
            raise RunError(
                f"the run did not start within run.start_timeout_s {timeout_s:g} s; {self._rollouts.describe()}; "
                f"{self._rewards.describe()}; raise it, or see Ray's logs for what hangs"
            ) from error

    async def _place_learner(self) -> None:
        """In places of the ranks' own, or in those that they share with engines, which outlive a learner that dies."""
        if isinstance(self._placement, SharedPlaces) and self._placement.group is None:
            self._placement.group = await place_ranks(self.config, self.log.note)
        await self._learner.start(self._placement.group)

    async def _set_up_learner(self) -> None:
        """Load the policy, and where the run goes on, the checkpoint; then workers that join may have the weights, and
        engines that take turns with the learner may start."""
        await self._learner.setup(self._model.path)
        if self.checkpoint is not None:
            await self._learner.load_checkpoint(str(self.checkpoint / "state"))
        if self.checkpoint is not None or self._num_restarts:  # else workers begin with these weights by themselves
            await self._weights.restore(self._learner.ranks, self.state.step)
        await self._turns.begin_drawing()
        self._live_weights.set()

    async def _drop_unfit_prompts(self) -> None:
        model = os.path.expanduser(self._model.path)
        fitting = await asyncio.to_thread(prompts_that_fit, self.config, model, self.train, self.evaluation)
        if num_dropped := len(self.train.prompts) - len(fitting[0].prompts):
            reasons = summarize_skipped(fitting[0].skipped[len(self.train.skipped) :])
            self.log.note(f"{num_dropped} prompts of {self.train.source} are left out:\n{reasons}")
        self.train, self.evaluation = fitting

    async def _train(self) -> bool:
        """True when all steps were made, False when the run was told to stop."""
        rollout = self.config.rollout
        roller = GroupRoller(
            self._rollouts, self._rewards, rollout.max_attempts, rollout.group_timeout_s, self.log.failure
        )
        self.state.check_prompts(self.train.prompts, self.train.source)
        self.state = replace(self.state, prompts_digest=digest_of(self.train.prompts))
        await self._evaluation.before(roller, self.evaluation)
        await self.log.status("training")
        lost: Exception | None = None
        while True:
            try:
                if lost is not None:
                    await self._restart(lost)
                finished = await self._run_pipeline(roller)
                break
            except (BicotError, RayError) as error:
                if not await self._may_restart(error):
                    raise
                lost = error
        if finished:
            await self._evaluation.after(roller, self.evaluation, self.config.run.steps)
        return finished

    async def _run_pipeline(self, roller: GroupRoller) -> bool:
        queue = await QueueClient(self.config, self._name_of_life, self.state.step, self.log.note).start()
        machinery = Machinery(self._rollouts, roller, queue, self._learner, self._weights, self._turns)
        source = PromptSource(self.train.prompts, self.config.run.seed, shuffle=self.config.data.shuffle)
        evaluate, is_due = functools.partial(self._evaluation.during, roller, self.evaluation), self._evaluation.is_due
        self._pipeline = pipeline = Pipeline(self.config, machinery, source, self.log, self.state, evaluate, is_due)
        self._is_training = True
        try:
            return await pipeline.run()
        finally:
            self._is_training = False
            self.state = pipeline.state
            await queue.close()

    async def _may_restart(self, error: Exception) -> bool:
        """Whether another learner may help: a registry that is lost does not come back for one, and each needs it."""
        if isinstance(error, RegistryError) or self._num_restarts >= self.config.run.max_restarts:
            return False
        return isinstance(error, LearnerLostError) or not await self._learner.is_alive()

    async def _restart(self, error: Exception) -> None:
        """A new learner in place of the dead one, from the last checkpoint; the workers stay."""
        self._pipeline = None
        self._num_restarts += 1
        await self.log.saving.close(wait=False)
        before = self.state
        self.checkpoint, state = await self.log.checkpoints.newest() or (None, RunState())
        self.state = replace(state, prompts_digest=before.prompts_digest)
        self.log.note(
            f"{first_line(error)}; restart {self._num_restarts} of {self.config.run.max_restarts} (run.max_restarts) "
            f"from step {state.step}: {before.step - state.step} steps are made again"
        )
        self.log.progress.stage("starting the learner again")
        self.log.activity.restart()
        await self._learner.close()
        await self._turns.learner_lost()
        self._learner = LearnerGroup(self.config, self.log.directory.name, self._num_restarts, self.log.note)
        await self.log.rewind(self.state)
        await self._place_learner()
        await self._learner.check_shares(self.log.directory.path)
        await self._model.bring_to_ranks(self._learner)
        await self._set_up_learner()
        await self._weights.deliver(self._rollouts)

    @property
    def _name_of_life(self) -> str:
        """Prefix of actors that are made anew at each restart."""
        return f"{self.log.directory.name}-life{self._num_restarts}" if self._num_restarts else self.log.directory.name

    async def _finish(self, status: str, error: BaseException | None) -> RunSummary:
        """Save what can be saved, write the summary, end all actors. Runs after success, failure and stop alike."""
        checkpoint: str | None = None
        self.log.activity.phase("finishing")
        is_learner_well = not isinstance(error, LearnerError) or isinstance(error, CheckpointError)
        try:
            with noted(self.log.note, "the last checkpoint could not be written"):
                if self._has_new_steps and is_learner_well:
                    self.log.progress.stage("writing the last checkpoint")
                    checkpoint = str(await self.log.saving.save(self._learner, self.state) / "model")
                else:
                    await self.log.saving.close(wait=status == "failed" and is_learner_well)
            summary = summarize(self.log, self.state, status, self._evaluation.changes, checkpoint, error)
            await leave_behind(self.log, summary)
            with noted(self.log.note, "the registry could not be told of the end"):
                await self.log.status(status)
                await self.log.close()
            return summary
        finally:
            pools = (self._rollouts.close(), self._rewards.close(), self._learner.close(), self._weights.close())
            for result in await asyncio.gather(*pools, return_exceptions=True):
                if isinstance(result, Exception):
                    self.log.note(f"an actor could not be ended: {result}")
            if isinstance(self._placement, SharedPlaces):
                self._placement.close()

    @property
    def _has_new_steps(self) -> bool:
        """Whether the learner has made steps, and is where `state` says."""
        return self.state.step > 0 and self._pipeline is not None and self._pipeline.is_between_steps

    def _make_elasticity(self) -> Elasticity:
        def is_awaited() -> bool:
            return self._pipeline is None or not self._is_training or self._pipeline.is_waiting

        rollout = self.config.rollout
        rollouts = ElasticPool(self._rollouts, rollout.num_workers, rollout.cpus_per_worker, rollout.gpus_per_worker)
        return Elasticity(self.config.cluster, [rollouts, *self._rewards.elastic_pools], is_awaited, self.log.note)

    def _hooks(self, make_actor: Any, start: Any) -> PoolHooks:
        return PoolHooks(make_actor, start, self.log.worker, self.log.note, spawning=self._spawning)

    def _spawn_rollout(self, worker_id: str) -> ray.actor.ActorHandle:
        return spawn_rollout(self.config, self._model.path, worker_id, self.log.directory.name, self._placement)

    async def _start_rollout(self, handle: ray.actor.ActorHandle) -> None:
        await self._model.bring_to(handle)
        await handle.start.remote()
        await self._live_weights.wait()
