"""The controller's own limit: the launcher's loop, with engines and rewards that only pretend.

    group ─► ledger (Redis) ─► GroupRoller: rollout pool ─► reward pool ─► ledger ─► trajectory queue ─► ledger

The workers are objects of the same process behind actor handles (`local_actors`), so all that is measured
is bicot's own: pools, health, ledger, queue. Ray's cost of a call comes on top, and is measured beside it; for
heartbeats it is counted in.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ray

from cluster.actors import spawn
from cluster.actors.spawning import node_id
from cluster.actors.trajectory_queue import TrajectoryQueue
from cluster.benchmarks.local_actors import LocalActor
from cluster.benchmarks.pretending import GROUP_SIZE, PretendingWorker
from cluster.benchmarks.report import Scope, Table, spread
from cluster.groups import GroupRoller, RewardPools
from cluster.pools import ActorPool, Patience, PoolHooks
from cluster.session import PrivateRedis, ray_session
from cluster.session.placement import PlacementPlan
from cluster.state import Registry
from cluster.state.ledger import GroupState
from configs.schema import ClusterConfig, RewardConfig
from rollout.records import GroupRequest, Prompt

NUM_WORKERS = (8, 64, 512)
GROUPS_PER_S = 10.0
GROUPS_PER_STEP = 16
SHIPPED_STEP_S = 2.6
"""Seconds that configs/shapes_cpu.yaml needs for a step of as many groups, on two cores that do nothing else."""
SETTLING_S = 6.0
"""At most, from the first heartbeats to the first ones that the pace of the pool has set."""
NEVER = Patience(heartbeat_s=3600.0, heartbeat_timeout_s=3600.0)

Measured = TypeVar("Measured")


class PingedActor:
    """What a heartbeat is sent to."""

    async def ping(self) -> str:
        return node_id()


@dataclass(frozen=True, slots=True)
class Load:
    """What the launcher's process does, when groups come at GROUPS_PER_S."""

    busy: float
    """Share of one core."""
    pings_per_s: float

    def overhead(self, without: Load, ray_call_ms: float) -> float:
        """Share of one core that this load costs more than one `without` ledger and heartbeats, Ray's part included."""
        return self.busy - without.busy + self.pings_per_s * ray_call_ms / 1000


@dataclass(slots=True)
class Controller:
    """The launcher's part of the work, on pools of `num_workers` that pretend."""

    num_workers: int
    work_s: float
    registry: Registry | None
    patience: Patience
    _next: int = 0
    _num_queued: Counter[int] = field(default_factory=Counter)
    """Step -> groups of it that are queued."""
    _pings: Counter[str] = field(default_factory=Counter)

    @property
    def num_pings(self) -> int:
        """Heartbeats of all workers so far."""
        return self._pings["sent"]

    async def measure(self, drive: Callable[[Controller, GroupRoller], Coroutine[Any, Any, Measured]]) -> Measured:
        """Make the pools, drive them, end them."""

        async def on_change(worker_id: str, state: str) -> None:
            if self.registry is not None:
                await self.registry.set_worker(worker_id, worker_id.rpartition("-")[0], state)

        def hooks(make_actor: Any, start: Any) -> PoolHooks:
            return PoolHooks(
                spawn=lambda worker_id: LocalActor(PretendingWorker(self.work_s, self._pings)),
                start=start,
                on_change=on_change,
                note=print,
                end=LocalActor.kill,
            )

        async def start(handle: Any) -> None:
            await handle.start.remote()

        async def on_failure(request: GroupRequest, reason: str) -> None:
            raise AssertionError(f"a worker that pretends has failed: {reason}")

        rollouts = ActorPool("rollout", self.num_workers, 4, hooks(None, start), self.patience)
        reward = RewardConfig.model_validate({"name": "shapes", "replicas": max(1, self.num_workers // 8)})
        rewards = RewardPools((reward,), GROUP_SIZE, "bench", hooks, self.patience)
        if self.registry is not None:
            await self.registry.ledger.rewind(0)
        await asyncio.gather(rollouts.start(), rewards.start())
        try:
            return await drive(self, GroupRoller(rollouts, rewards, 1, 600.0, on_failure))
        finally:
            await asyncio.gather(rollouts.close(), rewards.close())

    async def roll(self, roller: GroupRoller, queue: TrajectoryQueue) -> None:
        """One group from prompt to queue, as the training loop takes it there."""
        sequence, self._next = self._next, self._next + 1
        request = GroupRequest(sequence, 0, Prompt(f"bench:{sequence}", "a red star"), GROUP_SIZE, 1, sequence)
        await self._tell(request, GroupState.DISPATCHED)
        rolled = await roller.roll(request)
        await self._tell(request, GroupState.SCORED)
        await queue.put(rolled.scored)
        await self._tell(request, GroupState.QUEUED)
        step = sequence // GROUPS_PER_STEP
        self._num_queued[step] += 1
        if self._num_queued[step] == GROUPS_PER_STEP and self.registry is not None:
            groups = range(step * GROUPS_PER_STEP, (step + 1) * GROUPS_PER_STEP)
            await self.registry.ledger.train(dict.fromkeys(groups, 0), step + 1)

    async def _tell(self, request: GroupRequest, state: GroupState) -> None:
        if self.registry is not None:
            await self.registry.ledger.move(request.sequence, state, request.attempt)


async def drive_at_most(controller: Controller, roller: GroupRoller, num_groups: int) -> float:
    """Groups a second, when as many are under way as the workers take."""
    limit = asyncio.Semaphore(4 * controller.num_workers)
    queue = _endless_queue(num_groups)

    async def one() -> None:
        async with limit:
            await controller.roll(roller, queue)

    started_s = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(num_groups)))
    return num_groups / (time.perf_counter() - started_s)


async def drive_at_rate(controller: Controller, roller: GroupRoller, duration_s: float) -> Load:
    """Groups come at GROUPS_PER_S; measured is from when as many end as begin, and each worker has been asked once."""
    settling_s = controller.work_s + min(controller.patience.heartbeat_s, SETTLING_S)
    num_groups = round((settling_s + duration_s) * GROUPS_PER_S)
    queue = _endless_queue(num_groups)

    async def feed() -> None:
        started_s = time.perf_counter()
        async with asyncio.TaskGroup() as groups:
            for number in range(num_groups):
                await asyncio.sleep(max(0.0, started_s + number / GROUPS_PER_S - time.perf_counter()))
                groups.create_task(controller.roll(roller, queue))

    feeding = asyncio.create_task(feed())
    await asyncio.sleep(settling_s)
    wall_s, busy_s, num_pings = time.perf_counter(), time.process_time(), controller.num_pings
    await asyncio.sleep(duration_s)
    busy_s, wall_s = time.process_time() - busy_s, time.perf_counter() - wall_s
    pings_per_s = (controller.num_pings - num_pings) / wall_s
    await feeding  # not cancelled: a group that is would tell Ray so
    return Load(busy_s / wall_s, pings_per_s)


def measure(scope: Scope) -> list[Table]:
    """Both tables."""
    num_groups, duration_s = scope.pick(quick=300, full=2000), float(scope.pick(quick=8, full=30))
    rows: list[tuple[str, ...]] = []
    loads: list[tuple[int, Load, Load]] = []
    with tempfile.TemporaryDirectory(prefix="bicot-bench-") as directory, _redis(Path(directory)) as url:
        for num_workers in NUM_WORKERS:
            fastest = Controller(num_workers, 0.0, None, Patience())
            # So long that one worker in four is at a group at any time.
            full = Controller(num_workers, num_workers / GROUPS_PER_S / 4, None, Patience())
            most = _run(url, fastest, lambda c, r: drive_at_most(c, r, num_groups))
            busy = _run(url, full, lambda c, r: drive_at_rate(c, r, duration_s))
            plain = _run(None, replace(full, patience=NEVER), lambda c, r: drive_at_rate(c, r, duration_s))
            rows.append((str(num_workers), spread([most]), _percent(busy.busy)))
            loads.append((num_workers, plain, busy))
        call_ms = _ray_call_ms(Path(directory), num_calls=scope.pick(quick=200, full=2000))
    return [
        Table(
            "Controller: groups it can drive",
            f"Pools, health, ledger in Redis and trajectory queue, with workers that only pretend; {num_groups} groups "
            f"of {GROUP_SIZE}. Busy: share of one core at {GROUPS_PER_S:g} groups a second over {duration_s:g} s, the "
            f"pretending included. Each call of a real Ray actor costs the launcher {call_ms:.2g} ms of a core on "
            "top: a group is 3 calls, a heartbeat 1.",
            ("rollout workers", "groups a second at most", f"busy at {GROUPS_PER_S:g} groups/s"),
            tuple(rows),
        ),
        _overhead(loads, call_ms),
    ]


def _overhead(loads: Sequence[tuple[int, Load, Load]], call_ms: float) -> Table:
    """Of (number of workers, load without ledger and heartbeats, load with both)."""
    step_s = GROUPS_PER_STEP / GROUPS_PER_S
    rows = []
    for num_workers, plain, busy in loads:
        overhead = busy.overhead(plain, call_ms)
        shares = [_percent(share) for share in (plain.busy, busy.busy, overhead, overhead * step_s / SHIPPED_STEP_S)]
        rows.append((str(num_workers), *shares[:2], f"{busy.pings_per_s:.1f}", *shares[2:]))
    return Table(
        "Overhead of ledger and heartbeats",
        f"The launcher at {GROUPS_PER_S:g} groups a second without either, and with both. Overhead: the difference, "
        f"and {call_ms:.2g} ms of Ray for each heartbeat; as a share of a step's time, where {GROUPS_PER_STEP} groups "
        f"take {step_s:g} s as they do here, or {SHIPPED_STEP_S:g} s as in configs/shapes_cpu.yaml. No weights "
        "are delivered here; in a run each delivery is a sign of life, too, and saves a worker's heartbeat.",
        (
            "rollout workers",
            "busy without",
            "busy with",
            "heartbeats a second",
            f"overhead, step of {step_s:g} s",
            f"overhead, step of {SHIPPED_STEP_S:g} s",
        ),
        tuple(rows),
    )


def _run(
    url: str | None, controller: Controller, drive: Callable[[Controller, GroupRoller], Coroutine[Any, Any, Measured]]
) -> Measured:
    async def with_ledger() -> Measured:
        if url is None:
            return await controller.measure(drive)
        async with Registry(url, "bench") as registry:
            await registry.clear()
            return await replace(controller, registry=registry).measure(drive)

    return asyncio.run(with_ledger())


def _ray_call_ms(directory: Path, num_calls: int) -> float:
    """Processor time that the launcher spends on one call of an actor, milliseconds."""

    async def ping_all() -> float:
        actor = spawn(PingedActor, name="pinged", num_cpus=0)
        await actor.ping.remote()
        busy_s = time.process_time()
        for _ in range(num_calls):
            await actor.ping.remote()
        spent_s = time.process_time() - busy_s
        ray.kill(actor)
        return 1000 * spent_s / num_calls

    with ray_session(ClusterConfig(num_cpus=1), PlacementPlan(()), directory / "ray-logs"):
        return asyncio.run(ping_all())


@contextmanager
def _redis(directory: Path) -> Iterator[str]:
    with PrivateRedis(directory / "redis") as server:
        yield server.url


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _endless_queue(num_groups: int) -> TrajectoryQueue:
    """Room for all, so that the queue costs its work and no waiting."""
    return TrajectoryQueue(num_groups + GROUPS_PER_STEP, GROUPS_PER_STEP)
