"""One run from start to end.

    warm start (cached) ─► start learner, rollout workers, rewards ─► evaluate ─► Pipeline ─► evaluate
                                                                                    └─► checkpoint, summary

`stop` ends it in good order at any point: while training after the step that is being made, with a
checkpoint; before that at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray.actor import ActorHandle

from cluster.actors import ProgressActor, RolloutActor, TrajectoryQueueActor, spawn
from cluster.curves import EvaluationPoint
from cluster.elasticity import Elasticity, ElasticPool
from cluster.evaluation import Evaluation, evaluate_all, reward_change
from cluster.groups import GroupRoller
from cluster.learner_group import LearnerGroup
from cluster.metrics import RunSummary, first_and_last_reward, read_metrics, write_summary
from cluster.nccl_sync import NcclSync
from cluster.own_placement import OwnPlacement
from cluster.pipeline import Machinery, Pipeline
from cluster.pool import ActorPool
from cluster.pool_member import Patience, PoolHooks
from cluster.remote_errors import own_error
from cluster.run_log import RunLog, samples_of
from cluster.samples import draw_before_after
from cluster.scoring import RewardPools
from cluster.weight_sync import ObjectStoreSync, WeightSync
from configs.errors import BicotError, LearnerError, RunError
from configs.schema import RunConfig
from rollout.conversation import Conversation
from rollout.prompts import PromptSet, PromptSource

PROGRESS_POLL_S = 1.0
NUM_COMPARED_PICTURES = 8


@dataclass(slots=True)
class Run:
    """Trains one policy. `train` and `evaluation` are the prompts; `log` hears everything."""

    config: RunConfig
    train: PromptSet
    evaluation: Mapping[str, PromptSet]
    log: RunLog
    _learner: LearnerGroup = field(init=False)
    _rollouts: ActorPool = field(init=False)
    _rewards: RewardPools = field(init=False)
    _weights: WeightSync = field(init=False)
    _own_placement: OwnPlacement = field(default_factory=OwnPlacement, init=False)
    _model_path: str = field(init=False)
    _pipeline: Pipeline | None = field(default=None, init=False)
    _task: asyncio.Task[Any] | None = field(default=None, init=False)
    _is_training: bool = field(default=False, init=False)
    _is_finishing: bool = field(default=False, init=False)
    _is_stopping: bool = field(default=False, init=False)
    _before: dict[str, Evaluation] = field(default_factory=dict, init=False)
    _after: dict[str, Evaluation] = field(default_factory=dict, init=False)
    _training_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        run_id = self.log.directory.name
        self._learner = LearnerGroup(self.config, run_id)
        cluster = self.config.cluster
        patience = Patience(self.config.run.start_timeout_s, cluster.heartbeat_s, cluster.heartbeat_timeout_s)
        self._rewards = RewardPools(
            self.config.rewards,
            self.config.algorithm.group_size,
            run_id,
            self._hooks,
            patience,
            cache_url=self.log.registry.url,
        )
        self._weights = self._make_weight_sync(run_id)
        self._rollouts = ActorPool(
            "rollout",
            self.config.rollout.num_workers.min,
            self.config.rollout.max_groups_per_worker,
            replace(
                self._hooks(self._spawn_rollout, _start_worker), weights=self._weights, end=self._own_placement.end
            ),
            patience,
        )

    def stop(self) -> None:
        """End in good order; a second call ends at once."""
        again, self._is_stopping = self._is_stopping, True
        if self._task is not None and (again or not (self._is_training or self._is_finishing)):
            self._task.cancel()
        elif self._is_training and self._pipeline is not None:
            self.log.note("stopping after this step; the checkpoint follows (once more to stop at once)")
            self._pipeline.stop()

    async def execute(self) -> RunSummary:
        """Run; returns the summary that was written. What ended a run early is raised after its summary is written."""
        self._task = asyncio.current_task()
        status, error = "failed", None
        try:
            await self.log.registry.set_run("starting", self.config.run.steps)
            await self._start()
            elasticity = asyncio.create_task(self._make_elasticity().run(), name="elasticity")
            try:
                finished = await self._train()
            finally:
                elasticity.cancel()
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
        await self._learner.start()
        self._model_path = await self._prepare_model()
        self.log.progress.stage("starting learner, rollout workers and rewards")
        timeout_s = self.config.run.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as starting:
                starting.create_task(asyncio.to_thread(self._drop_long_prompts))
                starting.create_task(self._learner.setup(self._model_path))
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

    async def _prepare_model(self) -> str:
        """The folder or hub id of the policy to train; makes the warm start first when there is one to make."""
        if self.config.warm_start is None:
            return self.config.model.path
        reports = spawn(ProgressActor, name=f"{self.log.directory.name}-progress", num_cpus=0)
        warm = asyncio.create_task(self._learner.warm_start(reports))
        while not warm.done():
            latest = await reports.latest.remote()
            if latest is not None:
                stage, done, total, metrics = latest
                detail = ", ".join(f"{key} {value:.3g}" for key, value in metrics.items())
                self.log.progress.stage(f"warm start: {stage}", done, total, detail)
            await asyncio.wait({warm}, timeout=PROGRESS_POLL_S)
        return await warm

    def _drop_long_prompts(self) -> None:
        """Prompts that do not fit are left out by name now, and cannot fail a group later."""
        rollout = self.config.rollout
        conversation = Conversation.from_pretrained(
            self._model_path, rollout.system_prompt, rollout.instruction, revision=self.config.model.revision
        )
        too_long = conversation.reason_against(rollout.max_prompt_tokens)
        num_before = len(self.train.prompts)
        self.train = self.train.without(too_long)
        self.evaluation = {name: prompts.without(too_long) for name, prompts in self.evaluation.items()}
        if num_dropped := num_before - len(self.train.prompts):
            self.log.note(f"{num_dropped} prompts of {self.train.source} are too long and left out")

    async def _train(self) -> bool:
        config, run_id = self.config, self.log.directory.name
        roller = GroupRoller(
            self._rollouts,
            self._rewards,
            config.rollout.max_attempts,
            config.rollout.group_timeout_s,
            self.log.failure,
        )
        self._before = await self._evaluate(roller, "before training", step=0)
        queue = spawn(
            TrajectoryQueueActor,
            config.max_queued_groups,
            config.algorithm.groups_per_step,
            0,
            name=f"{run_id}-queue",
            num_cpus=0,
        )
        machinery = Machinery(self._rollouts, roller, queue, self._learner, self._weights)
        source = PromptSource(self.train.prompts, config.run.seed, shuffle=config.data.shuffle)
        await self.log.registry.set_run("training")
        started = time.monotonic()
        self._pipeline = Pipeline(config, machinery, source, self.log)
        self._is_training = True
        try:
            finished = await self._pipeline.run()
        finally:
            self._is_training = False
            self._training_s = time.monotonic() - started
        if finished:
            self._after = await self._evaluate(roller, "after training", step=config.run.steps)
            await self._draw_before_after()
        return finished

    async def _evaluate(self, roller: GroupRoller, when: str, step: int) -> dict[str, Evaluation]:
        sets = {
            name: prompts.prompts[: self.config.data.num_evaluation_prompts]
            for name, prompts in self.evaluation.items()
        }
        if not sets:
            return {}
        self.log.progress.stage(f"evaluating {when}", detail=", ".join(f"{n}: {len(p)}" for n, p in sets.items()))
        evaluations = await evaluate_all(roller, sets, self.config.run.seed)
        for name, evaluation in evaluations.items():
            self.log.evaluations.append(EvaluationPoint(name, step, evaluation.mean_reward))
            self.log.note(f"{name} {when}: reward {evaluation.mean_reward:.3f} on {len(evaluation.groups)} prompts")
        return evaluations

    async def _draw_before_after(self) -> None:
        for name, before in self._before.items():
            compared = self._after[name].groups
            seen = {group.scored.rollout.request.sequence for group in compared}
            paired: Sequence[Any] = [g for g in before.groups if g.scored.rollout.request.sequence in seen]
            sequences = {group.scored.rollout.request.sequence for group in paired[:NUM_COMPARED_PICTURES]}
            earlier = await samples_of(_select(paired, sequences), len(sequences))
            later = await samples_of(_select(compared, sequences), len(sequences))
            path = self.log.directory.samples_dir / f"before_after_{name}.png"
            await asyncio.to_thread(draw_before_after, path, earlier, later)

    async def _finish(self, status: str, error: BaseException | None) -> RunSummary:
        """Save what can be saved, write the summary, end all actors. Runs after success, failure and stop alike."""
        checkpoint: str | None = None
        num_steps = self._pipeline.num_steps_done if self._pipeline is not None else 0
        try:
            if num_steps and not isinstance(error, LearnerError):
                self.log.progress.stage("writing the last checkpoint")
                checkpoint = str(await self.log.checkpoint(self._learner, num_steps) / "model")
                await self.log.draw_curves()
        except BicotError as late:
            self.log.note(f"the last checkpoint could not be written: {late}")
        summary = self._summarize(status, num_steps, checkpoint, error)
        write_summary(self.log.directory.summary_path, summary)
        try:
            await self.log.registry.set_run(status)
        except BicotError as late:
            self.log.note(str(late))
        await asyncio.gather(
            self._rollouts.close(), self._rewards.close(), self._learner.close(), self._weights.close()
        )
        return summary

    def _summarize(
        self, status: str, num_steps: int, checkpoint: str | None, error: BaseException | None
    ) -> RunSummary:
        rows = read_metrics(self.log.directory.metrics_path)
        first, last = first_and_last_reward(rows)
        images = int(sum(row["images"] or 0 for row in rows))
        return RunSummary(
            status=status,
            steps=num_steps,
            images=images,
            wall_s=self._training_s,
            images_per_s=images / self._training_s if self._training_s else 0.0,
            evaluation={name: reward_change(before, self._after.get(name)) for name, before in self._before.items()},
            reward_first=first,
            reward_last=last,
            checkpoint=checkpoint,
            groups_failed=self.log.num_failed_groups,
            groups_given_up=self._pipeline.num_given_up if self._pipeline is not None else 0,
            error=None if error is None else f"{type(error).__name__}: {error}",
        )

    def _make_weight_sync(self, run_id: str) -> WeightSync:
        config = self.config.weight_sync
        if config.backend == "nccl":
            return NcclSync(config, run_id, self.config.rollout.tensor_parallel_size, self.log.note)
        return ObjectStoreSync(config, run_id)

    def _make_elasticity(self) -> Elasticity:
        def is_awaited() -> bool:
            return self._pipeline is None or not self._is_training or self._pipeline.is_waiting

        rollout = self.config.rollout
        rollouts = ElasticPool(self._rollouts, rollout.num_workers, rollout.cpus_per_worker, rollout.gpus_per_worker)
        return Elasticity(self.config.cluster, [rollouts, *self._rewards.elastic_pools], is_awaited, self.log.note)

    def _hooks(self, make_actor: Any, start: Any) -> PoolHooks:
        return PoolHooks(spawn=make_actor, start=start, on_change=self.log.worker, note=self.log.note)

    def _spawn_rollout(self, worker_id: str) -> ActorHandle:
        rollout = self.config.rollout
        make = self._own_placement.spawn if rollout.tensor_parallel_size > 1 else spawn
        return make(
            RolloutActor,
            self.config,
            self._model_path,
            worker_id,
            name=f"{self.log.directory.name}-{worker_id}",
            num_cpus=rollout.cpus_per_worker,
            num_gpus=rollout.gpus_per_worker,
            threads=rollout.threads_per_worker,
        )


async def _start_worker(handle: ActorHandle) -> None:
    await handle.start.remote()


def _select(groups: Sequence[Any], sequences: set[int]) -> list[Any]:
    return [group for group in groups if group.scored.rollout.request.sequence in sequences]
