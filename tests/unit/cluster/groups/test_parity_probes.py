"""Which workers are probed for the parity gate, and when."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from cluster.groups.parity_probes import NUM_TOKENS, ParityProbes, silent_workers
from configs.errors import RolloutError
from configs.schema import RunConfig
from rollout.records import GroupRequest, GroupRollout
from tests.records import make_scored_group


def group_of(worker: str, versions: list[int]) -> GroupRollout:
    """Two pictures whose tokens these versions sampled, 16 each."""
    rollout = make_scored_group().rollout
    each = np.repeat(np.array(versions, np.int32), 16)
    trajectories = tuple(replace(trajectory, image_versions=each) for trajectory in rollout.trajectories)
    return replace(rollout, worker_id=worker, trajectories=trajectories)


@dataclass
class FakeWorker:
    """Answers `handle.probe.remote(...)`, or fails."""

    worker_id: str
    fails: bool = False
    asked: list[tuple[GroupRequest, int]] = field(default_factory=list)

    @property
    def handle(self) -> Any:
        return SimpleNamespace(probe=SimpleNamespace(remote=self._answer))

    async def _answer(self, request: GroupRequest, num_tokens: int) -> GroupRollout:
        self.asked.append((request, num_tokens))
        if self.fails:
            raise RolloutError("engine gone")
        return group_of(self.worker_id, [7])


@dataclass
class Setup:
    workers: list[FakeWorker]
    notes: list[str] = field(default_factory=list)

    def probes(self, first_step: int = 0, **algorithm: object) -> ParityProbes:
        config = RunConfig.model_validate(
            {
                "model": {"path": "m", "dtype": "float32"},
                "data": {"train": "shapes:train"},
                "rewards": [{"name": "shapes"}],
                "algorithm": algorithm,
                "parity": {"every_steps": 5},
            }
        )
        return ParityProbes(config, SimpleNamespace(members=tuple(self.workers)), self.notes.append, first_step)


def test_a_worker_is_silent_without_enough_tokens_of_the_version() -> None:
    groups = [group_of("a", [3]), group_of("b", [2, 3]), group_of("c", [2]), group_of("gone", [2])]
    assert silent_workers(3, groups, ["a", "b", "c", "idle"]) == {"c", "idle"}


async def test_only_silent_workers_are_asked_once_the_version_was_delivered() -> None:
    setup = Setup([FakeWorker("a"), FakeWorker("b")])
    delivered = asyncio.Event()
    delivery = asyncio.create_task(delivered.wait())
    asking = asyncio.create_task(setup.probes().of_step(1, [group_of("a", [1]), group_of("b", [0])], delivery))
    for _ in range(5):
        await asyncio.sleep(0)
    assert setup.workers[1].asked == []
    delivered.set()
    (probe,) = await asking
    assert probe.worker_id == "b"
    assert setup.workers[0].asked == []
    ((request, num_tokens),) = setup.workers[1].asked
    assert num_tokens == NUM_TOKENS
    assert request.prompt.text == "a red star"


async def test_workers_are_asked_in_the_first_two_steps_and_then_now_and_then() -> None:
    setup = Setup([FakeWorker("a")])
    probes, stale = setup.probes(first_step=3), [group_of("a", [0])]
    asked = [step for step in range(3, 14) if await probes.of_step(step, stale, None)]
    assert asked == [3, 4, 5, 10]


async def test_a_worker_that_cannot_answer_is_noted_and_left_out() -> None:
    setup = Setup([FakeWorker("a", fails=True), FakeWorker("b")])
    (probe,) = await setup.probes().of_step(1, [group_of("a", [0])], None)
    assert probe.worker_id == "b"
    assert setup.notes == ["step 1: worker a was not compared with the learner: engine gone"]


async def test_nobody_is_asked_where_engines_record_something_else_on_purpose() -> None:
    setup = Setup([FakeWorker("a")])
    assert await setup.probes(old_logprobs="guided").of_step(0, [group_of("a", [5])], None) == ()
