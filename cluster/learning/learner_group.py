"""The learner's DeepSpeed ranks, as one.

Every method enters all ranks and waits for all: a collective in which one rank is missing would
hang. A rank that dies, or is silent, ends the group with LearnerLostError; see `cluster.learning.pulses`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from cluster.actors import folders
from cluster.actors.folders import ProbeAnswer, WrittenFiles
from cluster.actors.learner import Stage
from cluster.learning.pulses import Pulses, SilentRankError, StepTimes
from cluster.learning.rank_placement import place_ranks, spawn_rank
from cluster.pools.cancellation import end_tasks, made_in_thread
from cluster.pools.remote_errors import WorkerLostError, raised_by, resolve, told
from configs.errors import BicotError, CheckpointError, ConfigError, LearnerError
from configs.schema import RunConfig

if TYPE_CHECKING:
    from learner.worker import StepReport
    from rollout.records import GroupRollout

Result = TypeVar("Result")
STARTING_FACTOR: Final = 5.0
"""Times as patient with a rank's pulse in a warm start, in which it still imports libraries."""
STEP_FLOOR_FACTOR: Final = 3.0
"""Heartbeats' time-outs that a step may take at least: what a pulse finds out is found out by it."""


class LearnerLostError(LearnerError):
    """A rank died, hung, or broke: the group is of no use any more, and a new one may go on from a checkpoint."""


class LearnerGroup:
    """`learner.num_ranks` actors in one placement group, so that all or none are placed."""

    def __init__(
        self, config: RunConfig, run_id: str, life: int = 0, note: Callable[[str], None] = lambda text: None
    ) -> None:
        """life: how often the run's learner has been started before; actors of different lives differ in name."""
        self._config = config
        self._name = f"{run_id}-learner" if life == 0 else f"{run_id}-learner-life{life}"
        self._note = note
        self._ranks: list[ActorHandle] = []
        self._placement_group: PlacementGroup | None = None
        cluster = config.cluster
        self._pulses = Pulses(self._ranks, cluster.heartbeat_s, cluster.heartbeat_timeout_s)
        self._step_times = StepTimes()

    @property
    def ranks(self) -> tuple[ActorHandle, ...]:
        return tuple(self._ranks)

    async def start(self, group: PlacementGroup | None = None) -> None:
        """Place the ranks; `setup` loads the model into them. Raises PlacementError.

        group: their place, which others share and outlives them; None: one is made, and goes with them.
        They are spawned in threads: Ray waits for its head to hear of an actor with a name, and of a placement group.
        """
        if group is None:
            self._placement_group = group = await place_ranks(self._config, self._note)
        for rank in range(self._config.learner.num_ranks):
            make = partial(spawn_rank, self._config, f"{self._name}-{rank}", rank, group)
            self._ranks.append(await made_in_thread(make, ray.kill))

    async def check_shares(self, folder: Path) -> None:
        """Make sure that every rank sees the same folder as this process, and may write there.

        Raises ConfigError, naming the nodes, when one does not: its checkpoints would be lost.
        """
        token = secrets.token_hex(8)
        question = folder / f".probe-{token}"
        names = [f".probe-{token}-rank-{rank}" for rank in range(len(self._ranks))]
        try:
            question.write_text(token, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"run.dir: cannot write to {folder}: {error.strerror or error}") from error
        try:
            references = [
                rank.answer_probe.remote(str(folder), question.name, name)
                for rank, name in zip(self._ranks, names, strict=True)
            ]
            answers = await self._gathered("answer_probe", references, self._config.run.start_timeout_s)
            seen = [_answer_is_here(folder / name, token) for name in names]
        finally:
            for path in (question, *(folder / name for name in names)):
                path.unlink(missing_ok=True)
        _check_answers(folder, answers, seen)
        nodes = sorted({answer.address for answer in answers})
        if len(nodes) > 1:
            self._note(f"the {len(nodes)} nodes of the learner's ranks: {', '.join(nodes)}")

    async def warm_start(self, on_stage: Callable[[Stage], None]) -> str:
        """The folder of the warm-started policy, made now unless rank 0's node has it in its cache.

        The same path, whose ~ is each node's own home, for all that use it: every rank has the folder when this
        returns. Raises LearnerLostError also when no stage gets on within run.start_timeout_s.
        """
        timeout_s = self._config.run.start_timeout_s
        (name,) = await self._gathered("find_warm_start", [self._ranks[0].find_warm_start.remote()], timeout_s)
        path = f"{self._config.run.cache_dir}/warm_start/{name}"
        if not await self._has_folder(0, path):
            meeting = await self._rendezvous()
            references = [rank.warm_start.remote(path, *meeting) for rank in self._ranks]
            pulses = replace(self._pulses, heartbeat_timeout_s=STARTING_FACTOR * self._pulses.heartbeat_timeout_s)
            pulses.all_answered()
            await self._gathered("warm_start", references, None, pulses.watch(on_stage, timeout_s))
        return path

    async def give_folder(self, path: str) -> list[ray.ObjectRef[folders.Part]]:
        """A folder of rank 0's node, in the object store: see `cluster.actors.folders`."""
        stream = self._ranks[0].give_folder.options(num_returns="streaming", concurrency_group="files").remote(path)
        with _as_learner_errors("give_folder", None):
            *parts, end = [reference async for reference in stream]
            await end  # raises what reading it raised
        return parts

    async def take_folder(self, path: str, parts: Sequence[ray.ObjectRef[folders.Part]]) -> None:
        """Bring a folder to the ranks' nodes that do not have it."""
        for rank, handle in enumerate(self._ranks):
            if not await self._has_folder(rank, path):
                timeout_s = self._config.run.start_timeout_s
                await self._gathered("take_folder", [handle.take_folder.remote(path, parts)], timeout_s)

    async def lacks_folder(self, path: str) -> bool:
        """Whether any rank's node is without the folder."""
        return not all([await self._has_folder(rank, path) for rank in range(len(self._ranks))])

    async def setup(self, model_path: str) -> None:
        """Load the policy and form the process group."""
        meeting = await self._rendezvous()
        references = [rank.setup.remote(model_path, *meeting) for rank in self._ranks]
        await self._gathered("setup", references, self._config.run.start_timeout_s)
        self._pulses.all_answered()

    async def train_step(self, batch: ray.ObjectRef, probes: Sequence[GroupRollout] = ()) -> StepReport:
        """One optimizer step on the batch behind a reference; the report is that of all ranks together. probes: see
        `cluster.groups.parity_probes`.

        It may take run.step_timeout_s, or a few times as long as steps have taken so far, if that is less.
        """
        started_s = time.monotonic()
        at_least_s = STEP_FLOOR_FACTOR * self._config.cluster.heartbeat_timeout_s
        timeout_s = self._step_times.bound_s(at_least_s, self._config.run.step_timeout_s)
        reports = await self._all("train_step", batch, probes, timeout_s=timeout_s)
        self._step_times.add(time.monotonic() - started_s)
        return reports[0]

    async def is_alive(self) -> bool:
        """Whether every rank answers a pulse, whatever it computes."""
        try:
            async with asyncio.timeout(self._config.cluster.heartbeat_timeout_s):
                await self._pulses.ask()
        except (RayError, WorkerLostError, SilentRankError, TimeoutError):
            return False
        return bool(self._ranks)

    async def watched(self, work: Awaitable[Result], what: str) -> Result:
        """What `work`, which uses the ranks, returns. Raises LearnerLostError when one dies or is silent meanwhile."""
        with _as_learner_errors(what, None):
            return await self._unless_silent(work, None, self._pulses.watch())

    async def offload(self) -> None:
        """Have the ranks keep their optimizer's state in host memory, and give what it took to others."""
        await self._all("offload", timeout_s=self._config.run.step_timeout_s)

    async def reload(self) -> None:
        """Have them take it back."""
        await self._all("reload", timeout_s=self._config.run.step_timeout_s)

    async def take_snapshot(self, step: int) -> None:
        """Have the ranks copy what going on after `step` steps needs into their host memory.

        Raises CheckpointError while the last copy is still being written, and LearnerError when the learner is at
        another step.
        """
        await self._all("take_snapshot", step, timeout_s=self._config.run.step_timeout_s)

    async def write_snapshot(self, directory: str) -> list[WrittenFiles]:
        """Have the ranks write what they have copied, beside what they compute; returns what each rank wrote.

        Raises CheckpointError when it cannot be written, or is not in time, and no rank writes any more unless it is
        late.
        """
        timeout_s = self._config.run.step_timeout_s
        references = [
            rank.write_snapshot.options(concurrency_group="checkpoint").remote(directory) for rank in self._ranks
        ]
        try:
            with _as_learner_errors("write_snapshot", timeout_s):
                return await self._unless_silent(_all_ended(references), timeout_s, self._pulses.watch())
        except LearnerLostError as error:
            if await self.is_alive():
                raise CheckpointError(str(error)) from error
            raise

    async def load_checkpoint(self, directory: str) -> int:
        """Go on where `take_snapshot` was; returns the number of steps made."""
        steps = await self._all("load_checkpoint", directory, timeout_s=self._config.run.start_timeout_s)
        return int(steps[0])

    async def close(self) -> None:
        """End all ranks."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks.clear()
        if self._placement_group is not None:
            group, self._placement_group = self._placement_group, None
            await asyncio.to_thread(remove_placement_group, group)

    async def _all(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Of ranks that are set up: whatever they compute, they answer pulses."""
        references = [getattr(rank, method).remote(*args) for rank in self._ranks]
        return await self._gathered(method, references, timeout_s, self._pulses.watch())

    async def _gathered(
        self, method: str, references: Sequence[Any], timeout_s: float | None, watch: Awaitable[None] | None = None
    ) -> list[Any]:
        """watch: runs meanwhile, and raises when the ranks are lost. Without one only the time-out finds that out:
        while a rank imports its libraries, from a cold disk for minutes, no thread of it may answer."""
        with _as_learner_errors(method, timeout_s):
            work = asyncio.gather(*map(resolve, references))
            return list(await self._unless_silent(work, timeout_s, watch))

    async def _unless_silent(
        self, work: Awaitable[Result], timeout_s: float | None, watch: Awaitable[None] | None
    ) -> Result:
        working, watching = asyncio.ensure_future(work), asyncio.ensure_future(watch or asyncio.Event().wait())
        try:
            await asyncio.wait({working, watching}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and not watching.done():
                raise _LateError
            if not working.done():
                watching.result()
            return working.result()
        finally:
            await end_tasks((working, watching))

    async def _has_folder(self, rank: int, path: str) -> bool:
        references = [self._ranks[rank].has_folder.remote(path)]
        return bool((await self._gathered("has_folder", references, self._config.run.start_timeout_s))[0])

    async def _rendezvous(self) -> tuple[str, int]:
        references = [self._ranks[0].rendezvous.remote()]
        (meeting,) = await self._gathered("rendezvous", references, self._config.run.start_timeout_s)
        return meeting


async def _all_ended(references: Sequence[Any]) -> list[Any]:
    """What they return, when all have ended, whether well or not. Raises the first of what they raised."""
    results = await asyncio.gather(*map(resolve, references), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)


class _LateError(Exception):
    """The ranks live, and have not done in time what they were asked for."""


@contextmanager
def _as_learner_errors(method: str, timeout_s: float | None) -> Iterator[None]:
    """Turn what waiting for ranks raises into the errors of bicot."""
    try:
        yield
    except _LateError as error:
        raise LearnerLostError(f"the learner did not finish {method} within {timeout_s:g} s") from error
    except SilentRankError as error:
        raise LearnerLostError(f"the learner is lost during {method}: {error}") from error
    except RayError as error:  # first: what a method raised is an instance of its own class, too
        own = raised_by(error)
        if isinstance(own, BicotError):
            raise type(own)(told(error)) from error
        if isinstance(error, RayActorError) and own is error:
            raise LearnerLostError(f"a learner rank died during {method}: {told(error)}") from error
        # When a rank dies, another one may be the first to say so: its connection broke.
        raise LearnerLostError(f"a learner rank failed during {method}: {told(error)}") from error
    except BicotError as error:
        if not isinstance(error, WorkerLostError):
            raise
        raise LearnerLostError(f"a learner rank died during {method}: {told(error)}") from error


def _answer_is_here(path: Path, token: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == token
    except OSError:
        return False


def _check_answers(folder: Path, answers: Sequence[ProbeAnswer], seen: Sequence[bool]) -> None:
    faults = {
        answer.address: answer.fault or "what it writes there is not seen here"
        for answer, is_seen in zip(answers, seen, strict=True)
        if answer.fault is not None or not is_seen
    }
    if faults:
        told_faults = "; ".join(f"node {address}: {fault}" for address, fault in sorted(faults.items()))
        raise ConfigError(
            f"run.dir: {folder} is not the same folder on the learner's nodes as on the launcher's ({told_faults}), so "
            "checkpoints would be lost; set run.dir to a folder on a disk that all nodes share"
        )
