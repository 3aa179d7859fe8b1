"""The pool's decisions, on workers of this process: who is called, who is doubted, who leaves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayTaskError

from cluster.benchmarks.local_actors import LocalActor
from cluster.pools import ActorPool, Patience, PoolHooks
from cluster.pools.health import HealthState
from cluster.pools.heartbeats import PingPace
from cluster.pools.lifecycle import MAX_LATE
from cluster.pools.losses import MAX_IN_A_ROW
from cluster.pools.member import LateWeightsError, LostWeightsError
from cluster.pools.pool import MAX_FAILED_STARTS
from cluster.pools.remote_errors import CallFailedError, ObjectsLostError, WorkerLostError
from configs.errors import DataError, ModelError, RunError
from rollout.records import NO_VERSION, WeightVersion

WAIT_S = 10.0
PATIENCE = Patience(start_s=0.2, heartbeat_s=0.01, heartbeat_timeout_s=0.05, retry_start_s=0.01, pace=PingPace(1000.0))


def task_error(cause: Exception) -> Exception:
    """What Ray raises of what an actor's method has raised: an instance of both classes."""
    error: Exception = RayTaskError("ray::fail()", "ray::fail() (pid=1, ip=10.0.0.7)", cause).as_instanceof_cause()
    return error


@dataclass(slots=True)
class Worker:
    """Works until it is released, answers heartbeats unless it is told to be mute."""

    released: asyncio.Event = field(default_factory=asyncio.Event)
    listens: asyncio.Event = field(default_factory=asyncio.Event)
    has_place: asyncio.Event = field(default_factory=asyncio.Event)
    num_pings: int = 0

    async def work(self) -> int:
        await self.released.wait()
        return id(self)

    async def fail(self, error: Exception | None = None) -> None:
        raise error or task_error(DataError("no such prompt"))

    async def ping(self) -> str:
        self.num_pings += 1
        await self.has_place.wait()
        await self.listens.wait()
        return "node"


@dataclass(slots=True)
class Weights:
    """`LiveWeights` that may become newer while a worker loads them."""

    version: WeightVersion = NO_VERSION
    published_meanwhile: int = 0
    num_late: int = 0
    """Times that a worker will be late."""
    num_lost: int = 0
    """Times that the version cannot be had."""

    async def catch_up(self, worker: Any) -> WeightVersion:
        held = self.version
        if self.num_late:
            self.num_late -= 1
            raise LateWeightsError("not loaded within 300 s")
        if self.num_lost:
            self.num_lost -= 1
            raise LostWeightsError("damaged, and the learner has gone on")
        if self.published_meanwhile:
            self.published_meanwhile -= 1
            self.version = WeightVersion(0, self.version.number + 1)
        return held


@dataclass(slots=True)
class Scene:
    """A pool of `Worker`s and all that it told. `start`: what each worker's start does, by its number."""

    size: int = 2
    max_calls: int = 1
    patience: Patience = PATIENCE
    start: Callable[[int], Any] = lambda number: None
    hear: Callable[[str], Any] = lambda state: None
    """What hearing of a state does, beside writing it down."""
    weights: Weights = field(default_factory=Weights)
    make: Callable[[], Worker] = Worker
    loading: Callable[[], Any] = contextlib.nullcontext
    workers: list[Worker] = field(default_factory=list)
    actors: list[LocalActor] = field(default_factory=list)
    changes: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pool: ActorPool = field(init=False)
    has_room: bool = True
    """Whether the cluster has a place for workers from now on."""
    given_up: list[Any] = field(default_factory=list)
    """Answers that workers were told to leave."""
    head_answers: threading.Event = field(default_factory=threading.Event)
    """Cleared: whoever spawns a worker waits."""

    def __post_init__(self) -> None:
        self.head_answers.set()
        hooks = PoolHooks(
            spawn=self._spawn,
            start=self._start,
            on_change=self._hear,
            note=self.notes.append,
            weights=self.weights,
            loading=self.loading,
            end=LocalActor.kill,
            give_up=self.given_up.append,
        )
        self.pool = ActorPool("worker", self.size, self.max_calls, hooks, self.patience, fatal=(ModelError,))

    def states(self, number: int) -> list[str]:
        return [state for worker_id, state in self.changes if worker_id == f"worker-{number}"]

    async def until(self, number: int, state: HealthState) -> None:
        """Wait until a worker gets into a state."""
        async with asyncio.timeout(WAIT_S):
            while state not in self.states(number):
                await asyncio.sleep(0.001)

    async def call(self) -> int:
        return await asyncio.wait_for(self.pool.call(lambda handle: handle.work.remote(), WAIT_S), WAIT_S)

    def _spawn(self, worker_id: str) -> LocalActor:
        self.head_answers.wait(WAIT_S)
        worker = self.make()
        worker.released.set()
        worker.listens.set()
        if self.has_room:
            worker.has_place.set()
        self.workers.append(worker)
        self.actors.append(LocalActor(worker))
        return self.actors[-1]

    async def _start(self, handle: LocalActor) -> None:
        await self.workers[self.actors.index(handle)].has_place.wait()
        outcome = self.start(self.actors.index(handle))
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            await outcome

    async def _hear(self, worker_id: str, state: str) -> None:
        self.changes.append((worker_id, state))
        if (outcome := self.hear(state)) is not None:
            await outcome


async def started(scene: Scene) -> Scene:
    await asyncio.wait_for(scene.pool.start(), WAIT_S)
    return scene


async def test_a_newcomer_is_stale_until_it_holds_the_version_that_is_live_by_then() -> None:
    scene = await started(Scene(size=1, weights=Weights(version=WeightVersion(0, 3), published_meanwhile=2)))
    (member,) = scene.pool.members
    assert member.health.held_version == scene.weights.version == WeightVersion(0, 5)
    assert scene.states(0) == ["JOINING", "STALE", "READY"]
    await scene.pool.close()


async def test_a_silent_worker_gets_no_calls_and_is_replaced_when_it_stays_silent() -> None:
    scene = await started(Scene(size=2))
    scene.workers[0].listens.clear()
    await scene.until(0, HealthState.SUSPECT)
    assert await scene.call() == id(scene.workers[1])
    await scene.until(0, HealthState.DEAD)
    await scene.until(2, HealthState.READY)
    assert scene.pool.num_lost == 1
    assert "worker-0 was silent for 0.05 s; starting another in its place" in scene.notes
    await scene.pool.close()


async def test_calls_and_heartbeats_go_on_while_ray_does_not_take_a_new_worker() -> None:
    scene = await started(Scene(size=2))
    scene.head_answers.clear()
    scene.actors[0].kill()
    await scene.until(0, HealthState.DEAD)
    await scene.until(2, HealthState.JOINING)
    pings = scene.workers[1].num_pings
    for _ in range(3):
        assert await scene.call() == id(scene.workers[1])
    async with asyncio.timeout(WAIT_S / 2):
        while scene.workers[1].num_pings == pings:
            await asyncio.sleep(0.001)
    assert len(scene.workers) == 2
    scene.head_answers.set()
    await scene.until(2, HealthState.READY)
    await scene.pool.close()


async def test_pools_of_one_run_spawn_their_workers_in_the_order_in_which_they_are_started() -> None:
    """The small workers of the second pool could take the room of a large one of the first."""
    born: list[str] = []

    async def tell_slowly(state: str) -> None:
        await asyncio.sleep(0.02)

    first, second = Scene(size=3, hear=lambda state: tell_slowly(state)), Scene(size=3)
    for scene, name in ((first, "first"), (second, "second")):
        spawn = scene.pool.hooks.spawn

        def spawn_and_note(worker_id: str, spawn: Any = spawn, name: str = name) -> Any:
            born.append(name)
            return spawn(worker_id)

        spawning = first.pool.hooks.spawning
        scene.pool.hooks = replace(scene.pool.hooks, spawn=spawn_and_note, spawning=spawning)
    async with asyncio.TaskGroup() as starting:
        starting.create_task(first.pool.start())
        starting.create_task(second.pool.start())
    assert born == ["first"] * 3 + ["second"] * 3
    for scene in (first, second):
        await scene.pool.close()


async def test_a_worker_that_is_not_wanted_any_more_when_ray_takes_it_is_ended() -> None:
    scene = await started(Scene(size=1))
    scene.head_answers.clear()
    await scene.pool.resize(3)
    await scene.until(2, HealthState.JOINING)
    await scene.pool.resize(2)  # the newest goes, which still waits for the other one to be spawned
    closing = asyncio.create_task(scene.pool.close())
    await asyncio.wait_for(closing, WAIT_S)
    scene.head_answers.set()
    async with asyncio.timeout(WAIT_S):
        while len(scene.actors) < 2 or not scene.actors[1].is_dead:
            await asyncio.sleep(0.001)
    assert len(scene.actors) == 2
    assert scene.pool.everyone == ()


async def test_a_suspect_that_answers_late_is_ready_again() -> None:
    scene = await started(Scene(size=1, patience=Patience(heartbeat_s=0.01, heartbeat_timeout_s=WAIT_S)))
    scene.workers[0].listens.clear()
    await scene.until(0, HealthState.SUSPECT)
    scene.workers[0].listens.set()
    assert await scene.call() == id(scene.workers[0])
    assert scene.states(0) == ["JOINING", "STALE", "READY", "SUSPECT", "READY"]
    await scene.pool.close()


async def test_a_suspect_that_missed_a_version_loads_it_before_it_is_called_again() -> None:
    scene = await started(Scene(size=1, patience=Patience(heartbeat_s=0.01, heartbeat_timeout_s=WAIT_S)))
    scene.workers[0].listens.clear()
    await scene.until(0, HealthState.SUSPECT)
    scene.weights.version = WeightVersion(0, 7)
    scene.workers[0].listens.set()
    await scene.call()
    assert scene.pool.members[0].health.held_version == WeightVersion(0, 7)
    await scene.pool.close()


async def test_a_large_pool_asks_its_workers_no_oftener_than_a_small_one() -> None:
    scene = await started(Scene(size=8, patience=replace(PATIENCE, heartbeat_timeout_s=WAIT_S, pace=PingPace(0.01))))
    async with asyncio.timeout(WAIT_S):
        # Each at once, to learn where it is; then one of them, whose turn it is. The next turn comes after 100 s.
        while sum(worker.num_pings for worker in scene.workers) < 9:
            await asyncio.sleep(0.001)
        for _ in range(100):
            await scene.call()
            await asyncio.sleep(PATIENCE.heartbeat_s / 10)
    assert sum(worker.num_pings for worker in scene.workers) == 9
    await scene.pool.close()


async def test_whatever_a_worker_answers_is_a_sign_of_life() -> None:
    scene = await started(Scene(size=1, patience=Patience(heartbeat_s=3600.0, heartbeat_timeout_s=3600.0)))
    (member,) = scene.pool.members
    async with asyncio.timeout(WAIT_S):
        while not member.node_id:
            await asyncio.sleep(0)
    times = [member.heard_s]
    await scene.call()
    times.append(member.heard_s)
    with pytest.raises(DataError):
        await scene.pool.call(lambda handle: handle.fail.remote(), WAIT_S)
    times.append(member.heard_s)
    assert times[0] < times[1] < times[2]
    assert scene.workers[0].num_pings == 1
    await scene.pool.close()


async def test_a_worker_that_drains_finishes_its_call_and_takes_no_other() -> None:
    scene = await started(Scene(size=2, max_calls=4))
    for worker in scene.workers:
        worker.released.clear()
    running = [asyncio.create_task(scene.call()) for _ in range(2)]
    async with asyncio.timeout(WAIT_S):
        while any(member.num_calls == 0 for member in scene.pool.members):
            await asyncio.sleep(0)
    await scene.pool.resize(1)
    (leaving,) = (n for n in range(2) if "DRAINING" in scene.states(n))
    scene.workers[1 - leaving].released.set()
    assert await scene.call() == id(scene.workers[1 - leaving])
    assert "DEAD" not in scene.states(leaving)
    scene.workers[leaving].released.set()
    assert set(await asyncio.gather(*running)) == {id(worker) for worker in scene.workers}
    assert scene.states(leaving)[-2:] == ["DRAINING", "DEAD"]
    assert (scene.pool.num_ready, scene.pool.num_lost) == (1, 0)
    await scene.pool.close()


async def test_a_pool_grows_and_a_worker_that_is_drained_for_its_node_is_replaced() -> None:
    scene = await started(Scene(size=1))
    await scene.pool.resize(2)
    await scene.until(1, HealthState.READY)
    await scene.pool.drain(scene.pool.members[0])
    await scene.until(2, HealthState.READY)
    assert scene.states(0)[-1] == "DEAD"
    await scene.pool.close()


async def test_of_equals_the_newest_leaves_first_so_that_the_node_that_was_added_for_it_empties() -> None:
    scene = await started(Scene(size=1))
    await scene.pool.resize(3)
    await scene.until(2, HealthState.READY)
    await scene.until(1, HealthState.READY)
    await scene.pool.resize(1)
    assert [scene.states(number)[-1] for number in range(3)] == ["READY", "DEAD", "DEAD"]
    await scene.pool.close()


async def test_of_the_surplus_those_that_are_not_ready_leave_first() -> None:
    forever = asyncio.Event()
    scene = await started(Scene(size=1, start=lambda number: forever.wait() if number else None))
    await scene.pool.resize(2)
    await scene.until(1, HealthState.JOINING)
    await scene.pool.resize(1)
    assert scene.states(1) == ["JOINING", "DEAD"]
    assert scene.pool.num_ready == 1
    await scene.pool.close()


async def test_a_start_that_never_ends_is_an_error_when_nobody_else_works() -> None:
    forever = asyncio.Event()
    scene = Scene(size=1, start=lambda number: forever.wait())
    with pytest.raises(RunError, match=r"worker-0 has not started within 0\.2 s"):
        await started(scene)
    await scene.pool.close()


async def test_a_worker_that_finds_no_room_is_waited_for_while_others_work() -> None:
    scene = await started(Scene(size=1))
    scene.has_room = False
    await scene.pool.resize(2)
    async with asyncio.timeout(WAIT_S):
        while not any("it waits for room in the cluster; 1 others go on" in note for note in scene.notes):
            await asyncio.sleep(0.01)
    await scene.call()
    scene.workers[1].has_place.set()
    await scene.until(1, HealthState.READY)
    await scene.pool.close()


async def test_a_start_that_hangs_in_its_place_is_given_up_and_made_again() -> None:
    forever = asyncio.Event()
    scene = await started(Scene(size=1, start=lambda number: forever.wait() if number == 1 else None))
    await scene.pool.resize(2)
    await scene.until(1, HealthState.DEAD)
    await scene.until(2, HealthState.READY)
    assert any("worker-1 has not started within 0.2 s, though it has its place" in note for note in scene.notes)
    await scene.pool.close()


async def test_workers_that_die_while_starting_are_tried_again_a_few_times() -> None:
    from ray.exceptions import ActorDiedError

    scene = Scene(size=1, start=lambda number: ActorDiedError())
    with pytest.raises(RunError, match="no worker worker could be started"):
        await started(scene)
    assert len(scene.workers) == MAX_FAILED_STARTS
    await scene.pool.close()


async def test_a_failure_to_start_is_not_the_end_while_others_work() -> None:
    failing = iter([ModelError("no model on this node")] * 2)
    scene = await started(Scene(size=1, start=lambda number: next(failing, None) if number else None))
    await scene.pool.resize(2)
    await scene.until(3, HealthState.READY)
    assert sum("no model on this node; 1 others go on" in note for note in scene.notes) == 2
    await scene.pool.close()


async def test_a_worker_that_dies_idle_is_noticed_by_its_heartbeat() -> None:
    scene = await started(Scene(size=1))
    scene.actors[0].kill()
    await scene.until(1, HealthState.READY)
    assert scene.pool.num_lost == 1
    await scene.pool.close()


async def test_a_call_on_a_worker_that_dies_fails_by_name() -> None:
    scene = await started(Scene(size=1))
    scene.workers[0].released.clear()
    running = asyncio.create_task(scene.call())
    await asyncio.sleep(0)
    scene.actors[0].kill()
    with pytest.raises(WorkerLostError, match="worker-0 died"):
        await running
    await scene.pool.close()


async def test_the_description_names_who_is_not_ready() -> None:
    forever = asyncio.Event()
    scene = await started(Scene(size=1, start=lambda number: forever.wait() if number else None))
    await scene.pool.resize(2)
    assert scene.pool.describe() == "worker: 1 of 2 READY; worker-1 JOINING, without a process yet"
    await scene.pool.close()


async def test_a_call_that_is_cancelled_when_its_turn_has_come_gives_its_place_back() -> None:
    scene = await started(Scene(size=1))
    scene.workers[0].released.clear()
    first, second = (asyncio.create_task(scene.call()) for _ in range(2))
    async with asyncio.timeout(WAIT_S):
        while scene.pool.num_calls < 2:
            await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    scene.workers[0].released.set()
    assert await scene.call() == id(scene.workers[0])
    assert scene.pool.num_calls == 0
    await scene.pool.close()


async def test_closing_ends_also_a_member_whose_cancellation_is_lost_on_the_way() -> None:
    scene = Scene(size=1)
    is_told = asyncio.Event()

    async def lose_a_cancellation() -> None:
        is_told.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    scene.hear = lambda state: lose_a_cancellation() if state == "STALE" else None
    starting = asyncio.create_task(scene.pool.start())
    await asyncio.wait_for(is_told.wait(), WAIT_S)
    starting.cancel()
    async with asyncio.timeout(WAIT_S):
        await scene.pool.close()
    assert scene.states(0)[-1] == "READY", "the cancellation was lost, and the member went on"
    assert scene.pool.members == ()


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (task_error(DataError("no such prompt")), DataError, "no such prompt"),
        (
            task_error(ValueError("bad picture")),
            CallFailedError,
            r"worker-0 .*ValueError: bad picture \(on node 10.0.0.7",
        ),
        (task_error(TimeoutError("the judge")), CallFailedError, "TimeoutError: the judge"),
        (task_error(ModelError("gone")), WorkerLostError, "worker-0: gone"),
        (task_error(ObjectLostError("ab", None, "")), ObjectsLostError, "worker-0: what it was given or has answered"),
        (ObjectLostError("ab", None, ""), ObjectsLostError, "is lost with its node"),
        (OutOfMemoryError("killed due to the node running low on memory"), WorkerLostError, "low on memory"),
    ],
)
async def test_whatever_a_call_raises_is_an_error_of_the_pools_own(
    error: Exception, raised: type[Exception], words: str
) -> None:
    scene = await started(Scene(size=1))
    with pytest.raises(raised, match=words) as caught:
        await scene.pool.call(lambda handle: handle.fail.remote(error), WAIT_S)
    assert type(caught.value) is raised
    assert scene.pool.num_lost == (raised is WorkerLostError), "only a worker that is gone is replaced"
    await scene.call()
    await scene.pool.close()


async def test_a_worker_that_is_late_with_one_call_and_answers_others_is_told_to_leave_it_and_stays() -> None:
    """An overloaded fleet must not be killed as a whole."""
    scene = await started(Scene(size=1, max_calls=2))
    scene.workers[0].released.clear()
    late = asyncio.create_task(scene.pool.call(lambda handle: handle.work.remote(), 0.1))
    await asyncio.sleep(0)
    with pytest.raises(CallFailedError, match="ValueError"):
        await scene.pool.call(lambda handle: handle.fail.remote(task_error(ValueError("quick"))), WAIT_S)
    with pytest.raises(CallFailedError, match=r"did not answer within 0\.1 s, though it did others"):
        await late
    assert len(scene.given_up) == 1
    assert scene.pool.num_lost == 0
    await scene.pool.close()


async def test_a_worker_that_answers_nothing_for_as_long_as_a_call_may_take_is_replaced() -> None:
    scene = await started(Scene(size=1))
    scene.workers[0].released.clear()
    with pytest.raises(WorkerLostError, match=r"did not answer within 0\.1 s"):
        await scene.pool.call(lambda handle: handle.work.remote(), 0.1)
    assert (scene.pool.num_lost, scene.given_up) == (1, [])
    await scene.pool.close()


async def test_a_newcomer_that_fails_while_all_others_are_suspect_is_not_the_end() -> None:
    scene = Scene(size=2, start=lambda number: RuntimeError("hub is rate limiting") if number == 2 else None)
    scene.patience = replace(PATIENCE, heartbeat_timeout_s=WAIT_S)
    scene.pool.patience = scene.patience
    await started(scene)
    for worker in scene.workers:
        worker.listens.clear()
    await scene.until(0, HealthState.SUSPECT)
    await scene.until(1, HealthState.SUSPECT)
    await scene.pool.resize(3)
    await scene.until(2, HealthState.DEAD)
    for worker in scene.workers:
        worker.listens.set()
    await scene.call()
    await scene.until(3, HealthState.READY)
    assert any("hub is rate limiting; 2 others go on" in note for note in scene.notes)
    await scene.pool.close()


async def test_work_that_kills_every_worker_ends_the_pool_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.pools.losses.Losses.pause_s", 0.001)
    scene = await started(Scene(size=1))
    reason = OutOfMemoryError("it leaks")
    for _ in range(MAX_IN_A_ROW):
        with pytest.raises(WorkerLostError):
            await asyncio.wait_for(scene.pool.call(lambda handle: handle.fail.remote(reason), WAIT_S), WAIT_S)
    with pytest.raises(RunError, match=f"{MAX_IN_A_ROW} worker workers in a row were lost before .*it leaks"):
        await scene.call()
    assert len(scene.workers) == MAX_IN_A_ROW
    await scene.pool.close()


async def test_workers_that_are_lost_together_or_after_an_answer_are_no_sign_of_bad_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.pools.losses.Losses.pause_s", 0.001)
    scene = await started(Scene(size=2 * MAX_IN_A_ROW))
    for worker in scene.workers:
        worker.released.clear()
    calls = [asyncio.create_task(scene.call()) for _ in scene.workers]
    async with asyncio.timeout(WAIT_S):
        while scene.pool.num_idle:
            await asyncio.sleep(0)
    for actor in scene.actors[:]:
        actor.kill()
    assert all(isinstance(lost, WorkerLostError) for lost in await asyncio.gather(*calls, return_exceptions=True))
    for _ in range(MAX_IN_A_ROW):
        await scene.call()
        with pytest.raises(WorkerLostError):
            await scene.pool.call(lambda handle: handle.fail.remote(OutOfMemoryError("once")), WAIT_S)
    await scene.call()
    await scene.pool.close()


async def test_a_worker_that_is_late_with_new_weights_is_stale_until_it_has_them_and_not_dead() -> None:
    scene = await started(Scene(size=2))
    late = scene.pool.members[0]
    scene.workers[0].released.clear()
    scene.weights.version = WeightVersion(0, 1)
    scene.weights.num_late = 2
    assert await scene.pool.load(late, lambda handle: handle.work.remote(), 0.01) is None
    assert late.state is HealthState.STALE
    assert await scene.call() == id(scene.workers[1])
    async with asyncio.timeout(WAIT_S):
        while late.state is not HealthState.READY:
            await asyncio.sleep(0.001)
    assert late.health.held_version == WeightVersion(0, 1)
    assert scene.pool.num_lost == 0
    assert sum("worker-0 is late: not loaded within 300 s" in note for note in scene.notes) == 2
    await scene.pool.close()


async def test_a_worker_that_is_late_and_answers_no_ping_is_replaced() -> None:
    scene = await started(Scene(size=1))
    scene.weights.num_late = 1
    scene.workers[0].listens.clear()
    await scene.pool.load(scene.pool.members[0], lambda handle: handle.ping.remote(), 0.01)
    await scene.until(1, HealthState.READY)
    assert scene.pool.num_lost == 1
    await scene.pool.close()


async def test_a_worker_whose_weights_cannot_be_had_waits_for_others_and_holds_up_no_turn_of_the_learner() -> None:
    """Also for longer than one that is late may be, and from its start on."""
    num_turns = 0

    @contextlib.asynccontextmanager
    async def loading() -> AsyncIterator[None]:
        nonlocal num_turns
        num_turns += 1
        yield

    scene = await started(Scene(size=1, loading=loading, weights=Weights(num_lost=2 * MAX_LATE)))
    assert (num_turns, scene.pool.num_lost) == (1 + 2 * MAX_LATE, 0)
    scene.weights.num_lost = 1

    async def lost() -> None:
        raise LostWeightsError("damaged, and the learner has gone on")

    (member,) = scene.pool.members
    assert await scene.pool.load(member, lambda handle: lost(), WAIT_S) is None
    assert member.state is HealthState.STALE
    assert scene.notes == [
        "worker-0 has to wait: damaged, and the learner has gone on; it is given no work until it has caught up"
    ]
    assert await scene.call() == id(scene.workers[0])
    await scene.pool.close()


async def test_an_error_at_the_start_names_the_worker() -> None:
    scene = Scene(size=1, start=lambda number: task_error(ModelError("model '/srv/model': no such folder")))
    with pytest.raises(ModelError, match=r"worker-0: model '/srv/model': no such folder \(on node 10\.0\.0\.7\)"):
        await started(scene)
    await scene.pool.close()
