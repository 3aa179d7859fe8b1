"""The training loop over fakes: groups without spread are replaced and counted, and admission never waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.actors.trajectory_queue import TrajectoryQueue
from cluster.groups.roller import RollCounts, RolledGroup
from cluster.training.pipeline import Machinery, Pipeline
from configs.schema import RunConfig
from rollout.prompts import PromptSource
from rollout.records import GroupRequest, Prompt, TrajectoryBatch
from tests.records import make_scored_group

NUM_STEPS, GROUPS_PER_STEP = 4, 3
NUM_GROUPS = NUM_STEPS * GROUPS_PER_STEP


def make_config(max_resamples: int, max_staleness: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"steps": NUM_STEPS},
            "model": {"path": "none", "dtype": "float32"},
            "data": {"train": "none.jsonl"},
            "rewards": [{"name": "shapes"}],
            "algorithm": {
                "groups_per_step": GROUPS_PER_STEP,
                "group_size": 2,
                "max_resamples": max_resamples,
                "max_staleness": max_staleness,
            },
            "learner": {"micro_batch_size": 2},
        }
    )


@dataclass
class FakeRoller:
    """Rolls a group at once; whether its rewards have spread is a function of its request."""

    has_spread: Callable[[GroupRequest], bool]
    requests: list[GroupRequest] = field(default_factory=list)
    rewards: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(num_cached=0, take_figures=dict, elastic_pools=())
    )
    counts: RollCounts = field(default_factory=RollCounts)

    async def roll(self, request: GroupRequest) -> RolledGroup:
        self.requests.append(request)
        await asyncio.sleep(0)
        scored = make_scored_group(request.sequence, (0.0, 1.0) if self.has_spread(request) else (0.5, 0.5))
        rollout = replace(scored.rollout, request=request)
        return RolledGroup(replace(scored, rollout=rollout), pictures=None)


class FakeLearner:
    """Takes a batch, and reports nothing of it."""

    ranks = ()

    def __init__(self) -> None:
        self.batches: list[TrajectoryBatch] = []

    async def train_step(self, batch: TrajectoryBatch, probes: Sequence[object] = ()) -> Any:
        self.batches.append(batch)
        return SimpleNamespace(metrics={}, note=None, skipped=None, has_learned=True)

    async def watched(self, work: Awaitable[Any], what: str) -> Any:
        return await work


class FakeWeights:
    """Delivers each version at once."""

    def __init__(self) -> None:
        self.version = 0
        self.figures: dict[str, float] = {}

    async def publish(self, ranks: object, version: int, pool: object) -> None:
        self.version = version

    async def deliver(self, pool: object) -> int:
        return self.version


@dataclass
class FakeLog:
    """Keeps the metrics of every step."""

    rows: list[dict[str, float]] = field(default_factory=list)
    num_failed_groups: int = 0
    activity: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(phase=lambda name: None))

    async def group(self, request: GroupRequest, state: object) -> None:
        return None

    async def given_up(self, request: GroupRequest, reason: str) -> None:
        assert reason == "all its rewards are equal"

    async def version(self, version: int) -> None:
        return None

    def note(self, text: str) -> None:
        raise AssertionError(f"nothing went wrong, but the run says: {text}")

    def check(self) -> None:
        return None

    def write(self, metrics: dict[str, float]) -> None:
        self.rows.append(dict(metrics))

    async def step(self, metrics: dict[str, float], rolled: object) -> None:
        return None

    async def begin_checkpoint(self, learner: object, state: object) -> None:
        return None


@dataclass
class Fakes:
    roller: FakeRoller
    learner: FakeLearner = field(default_factory=FakeLearner)
    log: FakeLog = field(default_factory=FakeLog)


async def run(config: RunConfig, has_spread: Callable[[GroupRequest], bool]) -> Fakes:
    """The whole loop, in bounded time."""
    fakes = Fakes(FakeRoller(has_spread))
    queue = TrajectoryQueue(config.max_queued_groups, GROUPS_PER_STEP, 0)
    rollouts = SimpleNamespace(num_ready=1, members=(), started=())
    machinery = Machinery(rollouts, fakes.roller, queue, fakes.learner, FakeWeights())
    prompts = PromptSource([Prompt(f"test:{number}", f"prompt {number}") for number in range(1000)], seed=0)
    finished = await asyncio.wait_for(Pipeline(config, machinery, prompts, fakes.log).run(), timeout=30)
    assert finished
    return fakes


def replaced(request: GroupRequest) -> int:
    """How many prompts stood in a request's place before; a prompt may be attempted four times."""
    return request.attempt // 4


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_groups_without_spread_are_replaced_by_other_prompts_and_counted(max_staleness: int) -> None:
    fakes = await run(
        make_config(3, max_staleness), lambda request: request.sequence % 2 == 0 or replaced(request) == 2
    )
    trained = [group for batch in fakes.learner.batches for group in batch.groups]
    assert [group.rollout.request.sequence for group in trained] == list(range(NUM_GROUPS))
    assert all(np.ptp(group.rewards) > 0 for group in trained)
    assert [replaced(group.rollout.request) for group in trained] == [0, 2] * (NUM_GROUPS // 2)
    assert fakes.log.rows[-1]["groups_resampled"] == NUM_GROUPS
    assert len({request.prompt.prompt_id for request in fakes.roller.requests}) == 2 * NUM_GROUPS


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_when_no_prompt_has_spread_a_run_still_ends_after_a_bounded_number_of_tries(max_staleness: int) -> None:
    fakes = await run(make_config(2, max_staleness), lambda request: False)
    assert len(fakes.learner.batches) == NUM_STEPS
    assert len(fakes.roller.requests) == NUM_GROUPS * 3
    assert fakes.log.rows[-1]["groups_resampled"] == NUM_GROUPS * 2


async def test_by_default_a_group_without_spread_is_trained_on_as_it_is() -> None:
    fakes = await run(make_config(0, 1), lambda request: False)
    assert len(fakes.roller.requests) == NUM_GROUPS
    assert fakes.log.rows[-1]["groups_resampled"] == 0


async def test_what_takes_a_groups_place_does_not_depend_on_timing() -> None:
    def has_spread(request: GroupRequest) -> bool:
        return (request.sequence + replaced(request)) % 3 == 0

    runs = [await run(make_config(2, staleness), has_spread) for staleness in (0, 1, 2)]
    trained = [[g.rollout.request for batch in one.learner.batches for g in batch.groups] for one in runs]
    assert trained[0] == trained[1] == trained[2]
