"""The training loop: three loops that only meet in admission and in the trajectory queue.

    _produce                     waits for admission; starts one task a group
      └─ _roll_group  × many     prompt ─► GroupRoller ─► trajectory queue           (may wait for room)
    _learn                       waits for the batch of step k ─► optimizer step ─► publish version k + 1
      ├─ _deliver                version k + 1 ─► rollout workers ─► admission.advance(k + 1)
      │                                                                 └─► wakes _produce
      └─ _evaluate               now and then, before step k + 1: what version k + 1 makes of the evaluation sets

Nothing calls backwards; only `advance` closes the circle. With `max_staleness` above 0 the groups of
the next steps are rolled and scored while the learner works; at 0 nothing is admitted until the new
weights have arrived, which is synchronous training.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cluster.groups import Admission, GroupRoller, QueueClient
from cluster.groups.parity_probes import ParityProbes
from cluster.groups.roller import GroupGivenUpError, RolledGroup
from cluster.learning import LearnerGroup, NoTurns, Turns, WeightSync
from cluster.learning.skipped_steps import SkippedSteps
from cluster.pools import ActorPool
from cluster.pools.cancellation import end_tasks, unless_set
from cluster.reports.step_metrics import GroupTimes, StepClock, StepTimes, roller_metrics, step_metrics
from cluster.state import RunState
from cluster.state.ledger import GroupState
from cluster.training.run_memory import MemoryWatch
from configs.errors import RunError
from configs.schema import RunConfig
from rollout.prompts import PromptSource
from rollout.records import GroupRequest, derive_seed

if TYPE_CHECKING:
    from cluster.reports import RunLog


@dataclass(frozen=True, slots=True)
class Machinery:
    """What the loop drives."""

    rollouts: ActorPool
    roller: GroupRoller
    queue: QueueClient
    learner: LearnerGroup
    weights: WeightSync
    turns: Turns = field(default_factory=NoTurns)


@dataclass(slots=True)
class Pipeline:
    """Trains from the optimizer step at which `start` is to `run.steps`."""

    config: RunConfig
    machinery: Machinery
    prompts: PromptSource
    log: RunLog
    start: RunState = field(default_factory=RunState)
    evaluate: Callable[[int], Awaitable[Mapping[str, float]]] | None = None
    """Called after steps of which `is_evaluated` holds, with their number; returns metrics of that step."""
    is_evaluated: Callable[[int], bool] = lambda num_steps: False
    _admission: Admission = field(init=False)
    _rolled: dict[int, RolledGroup] = field(default_factory=dict, init=False)
    _group_times: dict[int, GroupTimes] = field(default_factory=dict, init=False)
    _replaced: dict[int, int] = field(default_factory=dict, init=False)
    """Sequence -> prompts replaced there so far; of the groups that are not trained on yet."""
    _num_given_up: int = field(init=False)
    _num_resampled: int = field(init=False)
    _num_given_up_in_a_row: int = field(default=0, init=False)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _between_steps: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    """Cleared from when the learner begins a step until all that is told of the step is written down."""
    _step: int = field(init=False)
    _is_waiting: bool = field(default=False, init=False)
    _started: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        algorithm = self.config.algorithm
        self._step = self.start.step
        self._admission = Admission(algorithm.groups_per_step, algorithm.max_staleness, self._step)
        self._replaced = dict(self.start.replaced)
        self._num_given_up = self.start.num_given_up
        self._num_resampled = self.start.num_resampled
        self._between_steps.set()

    @property
    def state(self) -> RunState:
        """Where the run is: after the last step that is written down."""
        return replace(
            self.start,
            step=self._step,
            replaced=dict(self._replaced),
            num_given_up=self._num_given_up,
            num_resampled=self._num_resampled,
            num_failed_groups=self.log.num_failed_groups,
            training_s=self.start.training_s + time.monotonic() - self._started,
        )

    @property
    def is_between_steps(self) -> bool:
        """Whether the learner is where `state` says, so that a checkpoint may be written."""
        return self._between_steps.is_set()

    @property
    def is_waiting(self) -> bool:
        """Whether the learner waits for groups now."""
        return self._is_waiting

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
                if produce.done() and produce.exception() is not None:
                    await self._end_of_step(learn)
                    produce.result()
            learn.result()
        finally:
            await end_tasks((produce, learn))
        return self._step == self.config.run.steps

    async def _end_of_step(self, learn: asyncio.Task[None]) -> None:
        """Wait until the step that is being made is made, so that it is not lost with what failed beside it."""
        between = asyncio.create_task(self._between_steps.wait())
        await asyncio.wait({learn, between}, return_when=asyncio.FIRST_COMPLETED)
        between.cancel()

    async def _produce(self) -> None:
        groups_per_step = self.config.algorithm.groups_per_step
        sequences = range(self.start.step * groups_per_step, self.config.run.steps * groups_per_step)
        try:
            async with asyncio.TaskGroup() as groups:
                for sequence in sequences:
                    await self._admission.admit(sequence)
                    groups.create_task(self._roll_group(sequence), name=f"group {sequence}")
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others were cancelled because of it

    async def _roll_group(self, sequence: int) -> None:
        admitted = time.monotonic()
        while True:
            request = self._request(sequence)
            await self.log.group(request, GroupState.DISPATCHED)
            try:
                rolled = await self.machinery.roller.roll(request)
            except GroupGivenUpError as error:
                await self._replace_prompt(request, error)
                continue
            if rolled.has_spread or self._replaced.get(sequence, 0) >= self.config.algorithm.max_resamples:
                break
            await self._resample(rolled.scored.rollout.request)
        self._num_given_up_in_a_row = 0
        self._rolled[sequence], scored = rolled, time.monotonic()
        self._group_times[sequence] = GroupTimes(admitted, scored - rolled.scored.scored_s, scored)
        await self.log.group(rolled.scored.rollout.request, GroupState.SCORED)
        await self.machinery.queue.put(rolled.scored)
        await self.log.group(rolled.scored.rollout.request, GroupState.QUEUED)

    def _request(self, sequence: int) -> GroupRequest:
        """What is to be rolled at a place in the run: a pure function of `sequence` and of the prompts replaced there.

        A prompt that takes another's place comes from beyond the run's end, so that no other group changes.
        The attempts go on counting, as the registry drops news of earlier ones.
        """
        algorithm = self.config.algorithm
        num_replaced = self._replaced.get(sequence, 0)
        prompt_index = sequence + num_replaced * self.config.run.steps * algorithm.groups_per_step
        return GroupRequest(
            sequence=sequence,
            attempt=num_replaced * self.config.rollout.max_attempts,
            prompt=self.prompts.prompt_at(prompt_index),
            group_size=algorithm.group_size,
            images_per_cot=algorithm.images_per_cot,
            seed=derive_seed(self.config.run.seed, "group", prompt_index),
        )

    async def _replace_prompt(self, request: GroupRequest, error: GroupGivenUpError) -> None:
        """Give up a group's prompt, so that its next request holds another one."""
        self._replaced[request.sequence] = self._replaced.get(request.sequence, 0) + 1
        self._num_given_up += 1
        self._num_given_up_in_a_row += 1
        last_attempt = request.attempt + self.config.rollout.max_attempts - 1
        await self.log.given_up(replace(request, attempt=last_attempt), str(error))
        self.log.note(f"{error}; another prompt takes its place")
        if self._num_given_up_in_a_row > self.config.algorithm.groups_per_step:
            raise RunError(f"{self._num_given_up_in_a_row} prompts in a row could not be rolled; the last: {error}")

    async def _resample(self, request: GroupRequest) -> None:
        """Let another prompt take the place of one whose trajectories all have the same reward: it would teach nothing
        (dynamic sampling: DAPO, arXiv:2503.14476, section 3.2). The place stays the group's own, so admission counts
        it once, and after `max_resamples` prompts the last one is trained on as it is."""
        self._replaced[request.sequence] = self._replaced.get(request.sequence, 0) + 1
        self._num_resampled += 1
        await self.log.given_up(request, "all its rewards are equal")

    async def _learn(self) -> None:
        try:
            # A delivery that fails cancels the loop: without the new version no more groups would be admitted.
            async with asyncio.TaskGroup() as deliveries:
                await self._make_steps(deliveries)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _make_steps(self, deliveries: asyncio.TaskGroup) -> None:
        delivery: asyncio.Task[None] | None = None
        skipped = SkippedSteps(self.config.run.steps)
        probes = ParityProbes(self.config, self.machinery.rollouts, self.log.note, self.start.step)
        clock = StepClock(self.machinery.roller.counts)
        memory = MemoryWatch(self.machinery.rollouts, self.machinery.roller.rewards, self.machinery.learner)
        self.machinery.turns.take_times()  # those before are of no step
        for step in range(self.start.step, self.config.run.steps):
            self.log.check()
            times = clock.step()
            self._is_waiting = True
            self.log.activity.phase("waiting")
            batch = await self._next_batch(step)
            self._is_waiting = False
            if batch is None:
                break
            times.batch_arrived = time.monotonic()
            self._between_steps.clear()
            self.log.activity.phase("learning")
            memory.ask()
            groups = [self._rolled[sequence].scored.rollout for sequence in self._sequences(step)]
            compared = await probes.of_step(step, groups, delivery)
            async with self.machinery.turns.learning():
                report = await self.machinery.learner.train_step(batch, compared)
                times.learned = time.monotonic()
            self.log.activity.phase("syncing")
            if delivery is not None:
                await delivery  # one version at a time: the store keeps the newest only
            await self._publish(step + 1)
            delivery = deliveries.create_task(self._deliver(), name=f"deliver {step + 1}")
            if self.config.algorithm.max_staleness == 0:
                await delivery
            clock.end(times)
            others = {**self.machinery.weights.figures, **await self._evaluate(step + 1, delivery), **memory.take()}
            clock.restart()  # an evaluation is part of no step
            notes = (report.note, skipped.count(step + 1, report))
            await self._finish_step(step, {**report.metrics, **others}, notes, times)
            skipped.check(step + 1)

    def _sequences(self, step: int) -> range:
        num_groups = self.config.algorithm.groups_per_step
        return range(step * num_groups, (step + 1) * num_groups)

    async def _publish(self, version: int) -> None:
        learner = self.machinery.learner
        publishing = self.machinery.weights.publish(learner.ranks, version, self.machinery.rollouts)
        await learner.watched(publishing, f"publishing weight version {version}")

    async def _next_batch(self, step: int) -> Any:
        """Reference to the batch of `step`, which itself does not pass through here; None when the run is to stop."""
        timeout_s = self.config.run.step_timeout_s
        groups = self.machinery.queue.get_batch(step)
        try:
            # With the learner workers may have lost the weights that they need to go on: nothing else would tell of it.
            watched = self.machinery.learner.watched(groups, f"the wait for the groups of step {step}")
            return await unless_set(self._stopping, watched, timeout_s)
        except TimeoutError:
            raise RunError(
                f"step {step} waited {timeout_s:g} s (run.step_timeout_s) for its groups; "
                f"{self.machinery.rollouts.describe()}; {self.machinery.roller.rewards.describe()}"
            ) from None

    async def _deliver(self) -> None:
        version = await self.machinery.weights.deliver(self.machinery.rollouts)
        await self.log.version(version)
        await self._admission.advance(version)

    async def _evaluate(self, num_steps: int, delivery: asyncio.Task[None]) -> Mapping[str, float]:
        """Metrics of an evaluation, if it is time for one; none when the run is told to stop meanwhile."""
        if self.evaluate is None or not self.is_evaluated(num_steps):
            return {}
        started = time.monotonic()
        await delivery  # until the next step, every worker holds the version that is measured
        try:
            return await unless_set(self._stopping, self.evaluate(num_steps)) or {}
        finally:
            self._started += time.monotonic() - started  # evaluations are no training time

    async def _finish_step(
        self, step: int, reported: Mapping[str, float], notes: Sequence[str | None], times: StepTimes
    ) -> None:
        self.log.activity.phase("reporting")
        sequences = self._sequences(step)
        rolled = [self._rolled.pop(sequence) for sequence in sequences]
        group_times = [self._group_times.pop(sequence) for sequence in sequences]
        metrics = step_metrics(step, [group.scored for group in rolled], reported, times, group_times)
        metrics["groups_given_up"] = self._num_given_up
        metrics["groups_resampled"] = self._num_resampled
        metrics |= roller_metrics(self.machinery.roller) | self.machinery.turns.take_times()
        self.log.write(metrics)
        for sequence in sequences:
            self._replaced.pop(sequence, None)
        self._step = step + 1
        self._between_steps.set()
        for note in filter(None, notes):
            self.log.note(note)
        await self.log.step(metrics, rolled)
        if self._step < self.config.run.steps:
            await self.log.begin_checkpoint(self.machinery.learner, self.state)
