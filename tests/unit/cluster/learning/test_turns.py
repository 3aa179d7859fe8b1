"""Whose turn it is on GPUs that engines and learner share: the order of what is done, and what breaks off half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import product

import pytest

from cluster.learning.turns import TRANSITIONS, GpuTurns, NoTurns, PooledEngines, Turn, make_turns
from cluster.pools.health import HealthState
from configs.errors import LearnerError
from configs.load import load_config
from tests.unit.cluster.pools.test_pool import PATIENCE, Scene, Worker, task_error

WAIT_S = 10.0


async def at_once() -> None:
    """Nothing keeps it."""


@dataclass
class Gpu:
    """One GPU, with what the fakes of its two users hold of it; it never holds both."""

    log: list[str] = field(default_factory=list)
    engines_awake: bool = False
    optimizer_here: bool = True
    fails_at: str = ""
    """The step that raises next, after half of it was done."""
    steps: int = 0

    async def _do(self, what: str) -> None:
        self.log.append(what)
        await asyncio.sleep(0)
        if self.fails_at == what:
            self.fails_at = ""
            raise LearnerError(f"{what} went wrong")

    async def sleep(self) -> None:
        await self._do("sleep")
        self.engines_awake = False

    async def wake(self) -> None:
        await self._do("wake")
        assert not self.optimizer_here, "both would be on the GPU"
        self.engines_awake = True

    async def offload(self) -> None:
        await self._do("offload")
        self.optimizer_here = False

    async def reload(self) -> None:
        await self._do("reload")
        assert not self.engines_awake, "both would be on the GPU"
        self.optimizer_here = True

    def train(self) -> None:
        assert self.optimizer_here
        assert not self.engines_awake
        self.steps += 1
        self.log.append("train")

    def another_learner(self) -> None:
        """In place of the one that is lost: it loads with its optimizer on the GPU."""
        assert not self.engines_awake, "both would be on the GPU"
        self.optimizer_here = True


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
async def turns(gpu: Gpu) -> GpuTurns:
    return GpuTurns(gpu, lambda: gpu)


async def test_a_step_is_sleep_reload_train_offload_wake(gpu: Gpu, turns: GpuTurns) -> None:
    assert turns.turn is Turn.LEARNING, "the learner loads first"
    await turns.begin_drawing()
    for _ in range(2):
        assert turns.turn is Turn.DRAWING
        async with turns.learning():
            assert turns.turn is Turn.LEARNING
            gpu.train()
    assert gpu.log == ["offload", "wake", *["sleep", "reload", "train", "offload", "wake"] * 2]


async def test_a_wrong_order_is_refused(gpu: Gpu, turns: GpuTurns) -> None:
    with pytest.raises(AssertionError, match="the learner cannot begin while the turn is learning"):
        async with turns.learning():
            gpu.train()
    await turns.begin_drawing()
    with pytest.raises(AssertionError, match="no way from drawing to to_drawing"):
        await turns.begin_drawing()
    async with turns.learning():
        with pytest.raises(AssertionError, match="the learner cannot begin while the turn is learning"):
            async with turns.learning():
                gpu.train()
    assert (gpu.steps, turns.turn) == (0, Turn.DRAWING)


def test_every_turn_can_be_left_and_ends_in_either_of_the_two() -> None:
    assert TRANSITIONS.keys() == set(Turn)
    assert set().union(*TRANSITIONS.values()) == set(Turn)
    for turn in Turn:
        reached, before = {turn}, set()
        while reached != before:
            before, reached = reached, reached.union(*(TRANSITIONS[each] for each in reached))
        assert reached == set(Turn)


@pytest.mark.parametrize("fails_at", ["sleep", "reload", "train", "offload", "wake"])
async def test_whatever_breaks_off_another_learner_goes_on_from_there(gpu: Gpu, turns: GpuTurns, fails_at: str) -> None:
    await turns.begin_drawing()
    gpu.fails_at = fails_at
    with pytest.raises(LearnerError, match=f"{fails_at} went wrong"):
        async with turns.learning():
            await gpu._do("train")
    await turns.learner_lost()
    assert turns.turn is Turn.LEARNING
    gpu.another_learner()
    await turns.begin_drawing()
    async with turns.learning():
        gpu.train()
    assert (gpu.engines_awake, gpu.optimizer_here, turns.turn) == (True, False, Turn.DRAWING)


@pytest.mark.parametrize(("first", "second"), product(["drawing", "offload", "wake"], ["offload", "wake", ""]))
async def test_a_learner_may_be_lost_again_while_another_begins(
    gpu: Gpu, turns: GpuTurns, first: str, second: str
) -> None:
    gpu.fails_at = first
    if first == "drawing":
        await turns.begin_drawing()
    else:
        with pytest.raises(LearnerError):
            await turns.begin_drawing()
    for fails_at in (second, ""):
        await turns.learner_lost()
        gpu.another_learner()
        gpu.fails_at = fails_at
        if fails_at:
            with pytest.raises(LearnerError):
                await turns.begin_drawing()
        else:
            await turns.begin_drawing()
            break
    assert (turns.turn, gpu.engines_awake) == (Turn.DRAWING, True)


async def test_an_engine_loads_in_the_engines_turn_only_and_the_learner_waits_for_its_end(
    gpu: Gpu, turns: GpuTurns
) -> None:
    loaded, log = asyncio.Event(), gpu.log

    async def load(name: str) -> None:
        async with turns.loading():
            log.append(f"{name} loads")
            await loaded.wait()
            log.append(f"{name} has loaded")

    async def learn() -> None:
        async with turns.learning():
            gpu.train()

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(load("first"))
        await turns_of_the_loop()
        assert log == [], "the learner loads now"
        await turns.begin_drawing()
        await turns_of_the_loop()
        assert log == ["offload", "wake", "first loads"]
        tasks.create_task(learn())
        await turns_of_the_loop()
        tasks.create_task(load("second"))
        await turns_of_the_loop()
        assert log[3:] == [], "the learner waits for the first, and the second for the learner"
        loaded.set()
    assert log[3:] == [
        *("first has loaded", "sleep", "reload", "train", "offload", "wake"),
        *("second loads", "second has loaded"),
    ]


async def test_an_engine_that_cannot_load_does_not_keep_the_learner_waiting(gpu: Gpu, turns: GpuTurns) -> None:
    await turns.begin_drawing()

    async def load() -> None:
        async with turns.loading():
            await asyncio.Event().wait()

    loading = asyncio.create_task(load())
    await turns_of_the_loop()
    loading.cancel()
    async with asyncio.timeout(WAIT_S), turns.learning():
        gpu.train()
    with pytest.raises(ValueError, match="no such model"):
        async with turns.loading():
            raise ValueError("no such model")
    async with asyncio.timeout(WAIT_S), turns.learning():
        gpu.train()


async def test_the_time_of_each_turn_is_told_once(gpu: Gpu) -> None:
    now_s = 0.0
    turns = GpuTurns(gpu, lambda: gpu, clock=lambda: now_s)
    await turns.begin_drawing()
    turns.take_times()
    now_s = 3.0
    async with turns.learning():
        now_s = 5.0
    now_s = 5.5
    expected = {"turns/learning_s": 2.0, "turns/to_drawing_s": 0.0, "turns/drawing_s": 3.5, "turns/to_learning_s": 0.0}
    assert turns.take_times() == expected
    assert turns.take_times() == dict.fromkeys(expected, 0.0)


async def test_on_gpus_of_their_own_nobody_waits_and_nothing_is_told() -> None:
    config = load_config("configs/shapes_cpu.yaml")
    turns = make_turns(config, Scene().pool, lambda: pytest.fail("nobody takes turns"))
    assert isinstance(turns, NoTurns)
    async with turns.loading(), turns.learning():
        await turns.begin_drawing()
    assert turns.take_times() == {}


@dataclass
class Sleeper(Worker):
    """A worker that sleeps, as `answer` has it."""

    answer: Callable[[], Awaitable[None]] = at_once
    told: list[str] = field(default_factory=list)

    async def sleep(self) -> None:
        self.told.append("sleep")
        await self.answer()

    async def wake(self) -> None:
        self.told.append("wake")


async def never() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise task_error(LearnerError("out of memory"))


@pytest.mark.parametrize("answer", [never, fail])
async def test_an_engine_that_does_not_go_to_sleep_is_ended_and_replaced_and_the_others_go_on(
    answer: Callable[[], Awaitable[None]],
) -> None:
    answers = iter([answer])
    scene = Scene(make=lambda: Sleeper(answer=next(answers, at_once)))
    await asyncio.wait_for(scene.pool.start(), WAIT_S)
    engines = PooledEngines(scene.pool, timeout_s=0.05)
    await asyncio.wait_for(engines.sleep(), WAIT_S)
    first, second, *_ = scene.workers
    assert scene.actors[0].is_dead
    assert any(note.startswith("worker-0 ") and "starting another" in note for note in scene.notes)
    await scene.until(2, HealthState.READY)
    await asyncio.wait_for(engines.wake(), WAIT_S)
    assert (first.told, second.told) == (["sleep"], ["sleep", "wake"])
    await scene.pool.close()


async def test_a_worker_that_is_replaced_while_the_learner_learns_begins_when_engines_draw(gpu: Gpu) -> None:
    """However long it waits, nobody takes it for one that hangs."""
    turns = GpuTurns(gpu, lambda: gpu)
    starts: list[Turn] = []
    patience = replace(PATIENCE, start_s=0.02)
    scene = Scene(size=1, patience=patience, loading=turns.loading, start=lambda number: starts.append(turns.turn))
    await turns.begin_drawing()
    await asyncio.wait_for(scene.pool.start(), WAIT_S)
    async with turns.learning():
        scene.actors[0].kill()
        await scene.until(0, HealthState.DEAD)
        await scene.until(1, HealthState.JOINING)
        await asyncio.sleep(5 * patience.start_s)
        assert starts == [Turn.DRAWING]
    await scene.until(1, HealthState.READY)
    assert starts == [Turn.DRAWING] * 2
    await scene.pool.close()


async def turns_of_the_loop() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
