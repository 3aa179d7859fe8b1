"""The learner's DeepSpeed ranks, as one.

Every method enters all ranks and waits for all: a collective in which one rank is missing would
hang. A rank that dies ends the group with LearnerLostError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.actors import LearnerActor, spawn
from cluster.pools.remote_errors import first_line, raised_by
from configs.errors import BicotError, LearnerError, PlacementError
from configs.schema import RunConfig

if TYPE_CHECKING:
    from learner.worker import StepReport


class LearnerLostError(LearnerError):
    """A rank died, hung, or broke: the group is of no use any more, and a new one may go on from a checkpoint."""


class LearnerGroup:
    """`learner.num_ranks` actors in one placement group, so that all or none are placed."""

    def __init__(self, config: RunConfig, run_id: str, life: int = 0) -> None:
        """life: how often the run's learner has been started before; actors of different lives differ in name."""
        self._config = config
        self._name = f"{run_id}-learner" if life == 0 else f"{run_id}-learner-life{life}"
        self._ranks: list[ActorHandle] = []
        self._placement_group: Any = None

    @property
    def ranks(self) -> tuple[ActorHandle, ...]:
        return tuple(self._ranks)

    async def start(self) -> None:
        """Place the ranks; `setup` loads the model into them."""
        learner = self._config.learner
        bundle = {"CPU": learner.cpus_per_rank, "GPU": learner.gpus_per_rank}
        bundle = {resource: amount for resource, amount in bundle.items() if amount > 0} or {"CPU": 0.001}
        self._placement_group = placement_group([bundle] * learner.num_ranks, strategy="PACK")
        try:
            async with asyncio.timeout(self._config.run.start_timeout_s):
                await self._placement_group.ready()
        except TimeoutError as error:
            raise PlacementError(
                f"{learner.num_ranks} learner ranks with {bundle} each were not placed within "
                f"{self._config.run.start_timeout_s:g} s; free resources, add nodes, or lower learner.num_ranks"
            ) from error
        self._ranks = [
            spawn(
                LearnerActor,
                self._config,
                rank,
                name=f"{self._name}-{rank}",
                num_cpus=bundle.get("CPU", 0),
                num_gpus=learner.gpus_per_rank,
                threads=learner.threads_per_rank,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement_group, rank),
            )
            for rank in range(learner.num_ranks)
        ]

    async def warm_start(self, report_to: ActorHandle) -> str:
        """The folder of the warm-started policy, made now unless the cache of rank 0's node has it."""
        with _as_learner_errors("find_warm_start", None):
            folder, exists = await self._ranks[0].find_warm_start.remote()
        if not exists:
            address, port = await self._rendezvous()
            await self._all("warm_start", folder, address, port, report_to, timeout_s=None)
        return str(folder)

    async def setup(self, model_path: str) -> None:
        """Load the policy and form the process group."""
        address, port = await self._rendezvous()
        await self._all("setup", model_path, address, port, timeout_s=self._config.run.start_timeout_s)

    async def train_step(self, batch: ray.ObjectRef) -> StepReport:
        """One optimizer step on the batch behind a reference; the report is that of all ranks together."""
        reports = await self._all("train_step", batch, timeout_s=self._config.run.step_timeout_s)
        return reports[0]

    async def is_alive(self) -> bool:
        """Whether every rank answers. One that computes answers when it is done."""
        try:
            await self._all("ping", timeout_s=self._config.run.step_timeout_s)
        except LearnerError:
            return False
        return bool(self._ranks)

    async def save_checkpoint(self, directory: str, step: int) -> None:
        """Write what going on after `step` steps needs. Raises LearnerError when the learner is at another step."""
        await self._all("save_checkpoint", directory, step, timeout_s=self._config.run.step_timeout_s)

    async def load_checkpoint(self, directory: str) -> int:
        """Go on where `save_checkpoint` was; returns the number of steps made."""
        steps = await self._all("load_checkpoint", directory, timeout_s=self._config.run.start_timeout_s)
        return int(steps[0])

    async def save_pretrained(self, directory: str) -> None:
        """Write a Hugging Face folder."""
        await self._all("save_pretrained", directory, timeout_s=self._config.run.step_timeout_s)

    async def close(self) -> None:
        """End all ranks."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks.clear()
        if self._placement_group is not None:
            remove_placement_group(self._placement_group)
            self._placement_group = None

    async def _all(self, method: str, *args: Any, timeout_s: float | None) -> list[Any]:
        references = [getattr(rank, method).remote(*args) for rank in self._ranks]
        with _as_learner_errors(method, timeout_s):
            async with asyncio.timeout(timeout_s):
                return list(await asyncio.gather(*references))

    async def _rendezvous(self) -> tuple[str, int]:
        with _as_learner_errors("rendezvous", None):
            return await self._ranks[0].rendezvous.remote()


@contextmanager
def _as_learner_errors(method: str, timeout_s: float | None) -> Iterator[None]:
    """Turn what waiting for ranks raises into the errors of bicot."""
    try:
        yield
    except RayActorError as error:
        raise LearnerLostError(f"a learner rank died during {method}: {first_line(error)}") from error
    except TimeoutError as error:
        raise LearnerLostError(f"the learner did not finish {method} within {timeout_s:g} s") from error
    except RayTaskError as error:
        own = raised_by(error)
        if isinstance(own, BicotError):
            raise own from error
        # When a rank dies, another one may be the first to say so: its connection broke.
        raise LearnerLostError(f"a learner rank failed during {method}: {first_line(error)}") from error
