"""The training loop: three loops that only meet in admission and in the trajectory queue.

    _produce                     waits for admission; starts one task a group
      └─ _roll_group  × many     prompt ─► GroupRoller ─► trajectory queue           (may wait for room)
    _learn                       waits for the batch of step k ─► optimizer step ─► publish version k + 1
      └─ _deliver                version k + 1 ─► rollout workers ─► admission.advance(k + 1)
                                                                        └─► wakes _produce

Nothing calls backwards; only `advance` closes the circle. With `max_staleness` above 0 the groups of
the next steps are rolled and scored while the learner works; at 0 nothing is admitted until the new
weights have arrived, which is synchronous training.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cluster.admission import Admission
from cluster.groups import GroupGivenUpError, GroupRoller, RolledGroup
from cluster.learner_group import LearnerGroup
from cluster.pool import ActorPool
from cluster.registry import GroupState
from cluster.step_metrics import StepTimes, step_metrics
from cluster.weight_sync import WeightSync
from configs.errors import RunError
from configs.schema import RunConfig
from rollout.prompts import PromptSource
from rollout.records import GroupRequest, derive_seed

if TYPE_CHECKING:
    from cluster.run_log import RunLog


@dataclass(frozen=True, slots=True)
class Machinery:
    """What the loop drives."""

    rollouts: ActorPool
    roller: GroupRoller
    queue: Any
    """Handle of the TrajectoryQueueActor."""
    learner: LearnerGroup
    weights: WeightSync


@dataclass(slots=True)
class Pipeline:
    """Trains from optimizer step `first_step` to `run.steps`."""

    config: RunConfig
    machinery: Machinery
    prompts: PromptSource
    log: RunLog
    first_step: int = 0
    _admission: Admission = field(init=False)
    _rolled: dict[int, RolledGroup] = field(default_factory=dict, init=False)
    _num_given_up: int = field(default=0, init=False)
    _num_given_up_in_a_row: int = field(default=0, init=False)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _step: int = field(default=0, init=False)
    _is_waiting: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        algorithm = self.config.algorithm
        self._admission = Admission(algorithm.groups_per_step, algorithm.max_staleness, self.first_step)
        self._step = self.first_step

    @property
    def num_steps_done(self) -> int:
        """Optimizer steps made, over all of the run's life."""
        return self._step

    @property
    def is_waiting(self) -> bool:
        """Whether the learner waits for groups now."""
        return self._is_waiting

    @property
    def num_given_up(self) -> int:
        """Prompts that could not be rolled and were replaced by others."""
        return self._num_given_up

    def stop(self) -> None:
        """End after the optimizer step that is being made, if any."""
        self._stopping.set()

    async def run(self) -> bool:
        """Train; True when all steps were made, False when `stop` was called. Raises what ended the run."""
        produce = asyncio.create_task(self._produce(), name="produce")
        learn = asyncio.create_task(self._learn(), name="learn")
        try:
            while not learn.done():
                running = {task for task in (produce, learn) if not task.done()}
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                if produce.done():
                    produce.result()
            learn.result()
        finally:
            produce.cancel()
            learn.cancel()
            await asyncio.gather(produce, learn, return_exceptions=True)
        return self._step == self.config.run.steps

    async def _produce(self) -> None:
        groups_per_step = self.config.algorithm.groups_per_step
        sequences = range(self.first_step * groups_per_step, self.config.run.steps * groups_per_step)
        try:
            async with asyncio.TaskGroup() as groups:
                for sequence in sequences:
                    await self._admission.admit(sequence)
                    groups.create_task(self._roll_group(sequence), name=f"group {sequence}")
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others were cancelled because of it

    async def _roll_group(self, sequence: int) -> None:
        request = self._request(sequence, prompt_index=sequence, attempt=0)
        while True:
            await self.log.group(request, GroupState.DISPATCHED)
            try:
                rolled = await self.machinery.roller.roll(request)
                break
            except GroupGivenUpError as error:
                request = await self._replace_prompt(request, error)
        self._num_given_up_in_a_row = 0
        self._rolled[sequence] = rolled
        await self.log.group(rolled.scored.rollout.request, GroupState.SCORED)
        await self.machinery.queue.put.remote(rolled.scored)
        await self.log.group(rolled.scored.rollout.request, GroupState.QUEUED)

    def _request(self, sequence: int, prompt_index: int, attempt: int) -> GroupRequest:
        algorithm = self.config.algorithm
        return GroupRequest(
            sequence=sequence,
            attempt=attempt,
            prompt=self.prompts.prompt_at(prompt_index),
            group_size=algorithm.group_size,
            images_per_cot=algorithm.images_per_cot,
            seed=derive_seed(self.config.run.seed, "group", prompt_index),
        )

    async def _replace_prompt(self, request: GroupRequest, error: GroupGivenUpError) -> GroupRequest:
        """Give up a group's prompt; returns the group with another one: from beyond the run's end, so that
        no other group changes. The attempts go on counting, as the registry drops news of earlier ones."""
        beyond_the_end = self.config.run.steps * self.config.algorithm.groups_per_step + self._num_given_up
        next_attempt = request.attempt + self.config.rollout.max_attempts
        self._num_given_up += 1
        self._num_given_up_in_a_row += 1
        await self.log.group(replace(request, attempt=next_attempt - 1), GroupState.GIVEN_UP)
        self.log.note(f"{error}; another prompt takes its place")
        if self._num_given_up_in_a_row > self.config.algorithm.groups_per_step:
            raise RunError(f"{self._num_given_up_in_a_row} prompts in a row could not be rolled; the last: {error}")
        return self._request(request.sequence, beyond_the_end, next_attempt)

    async def _learn(self) -> None:
        try:
            # A delivery that fails cancels the loop: without the new version no more groups would be admitted.
            async with asyncio.TaskGroup() as deliveries:
                await self._make_steps(deliveries)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _make_steps(self, deliveries: asyncio.TaskGroup) -> None:
        delivery: asyncio.Task[None] | None = None
        for step in range(self.first_step, self.config.run.steps):
            times = StepTimes(started=time.monotonic())
            self._is_waiting = True
            batch = await self._next_batch(step)
            self._is_waiting = False
            if batch is None:
                break
            times.batch_arrived = time.monotonic()
            report = await self.machinery.learner.train_step(batch)
            times.learned = time.monotonic()
            self._step = step + 1
            if delivery is not None:
                await delivery  # one version at a time: the store keeps the newest only
            await self.machinery.weights.publish(self.machinery.learner.ranks, self._step, self.machinery.rollouts)
            delivery = deliveries.create_task(self._deliver(), name=f"deliver {self._step}")
            if self.config.algorithm.max_staleness == 0:
                await delivery
            times.published = time.monotonic()
            await self._finish_step(step, report, times)

    async def _next_batch(self, step: int) -> Any:
        """Reference to the batch of `step`; None when the run is told to stop. The batch itself goes from
        the queue to the ranks without passing through here."""
        arrived, batch = self.machinery.queue.get_batch.options(num_returns=2).remote(step)
        arrival = asyncio.ensure_future(arrived)
        stop = asyncio.create_task(self._stopping.wait())
        timeout_s = self.config.run.step_timeout_s
        try:
            await asyncio.wait({arrival, stop}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                return None
            if not arrival.done():
                raise RunError(
                    f"step {step} waited {timeout_s:g} s (run.step_timeout_s) for its groups; "
                    f"{self.machinery.rollouts.num_ready} rollout workers are ready"
                )
            arrival.result()
        finally:
            # Nobody waits for the batch any more; left pending, it would report the queue's end as an error of its own.
            for task in (arrival, stop):
                task.cancel()
            await asyncio.gather(arrival, stop, return_exceptions=True)
        return batch

    async def _deliver(self) -> None:
        version = await self.machinery.weights.deliver(self.machinery.rollouts)
        await self.log.version(version)
        await self._admission.advance(version)

    async def _finish_step(self, step: int, report: Any, times: StepTimes) -> None:
        groups_per_step = self.config.algorithm.groups_per_step
        sequences = range(step * groups_per_step, (step + 1) * groups_per_step)
        rolled = [self._rolled.pop(sequence) for sequence in sequences]
        metrics = step_metrics(step, [group.scored for group in rolled], report.metrics, times)
        metrics["groups_given_up"] = self._num_given_up
        metrics["scores_cached"] = self.machinery.roller.rewards.num_cached
        if report.note is not None:
            self.log.note(report.note)
        await self.log.step(metrics, rolled)
        if self._step % self.config.checkpoint.every_steps == 0 and self._step < self.config.run.steps:
            await self.log.checkpoint(self.machinery.learner, self._step)
