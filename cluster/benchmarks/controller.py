"""The controller's own limit: the launcher's loop, with engines and rewards that only pretend.

    group ─► ledger (Redis) ─► GroupRoller: rollout pool ─► reward pool ─► ledger ─► trajectory queue ─► ledger

The workers are objects of the same process behind actor handles (`local_actors`), so all that is measured
is bicot's own: pools, health, ledger, queue. Ray's cost of a call comes on top, and is measured beside it.
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
from typing import Any

import numpy as np
import ray

from cluster.actors import node_id, spawn
from cluster.benchmarks.local_actors import LocalActor
from cluster.benchmarks.report import Scope, Table, spread
from cluster.groups import GroupRoller
from cluster.ledger import GroupState
from cluster.placement import PlacementPlan
from cluster.pool import ActorPool
from cluster.pool_member import Patience, PoolHooks
from cluster.private_redis import PrivateRedis
from cluster.ray_session import ray_session
from cluster.registry import Registry
from cluster.score_cache import RewardAnswer
from cluster.scoring import RewardPools
from cluster.trajectory_queue import TrajectoryQueue
from configs.schema import ClusterConfig, RewardConfig
from rollout.records import GroupRequest, GroupRollout, Prompt, Score, Trajectory, UInt8Array

NUM_WORKERS = (8, 64, 512)
GROUPS_PER_S = 10.0
GROUP_SIZE = 8
GROUPS_PER_STEP = 16
NEVER = Patience(heartbeat_s=3600.0, heartbeat_timeout_s=3600.0)


class PretendingWorker:
    """Rollout worker and reward replica in one: answers after `work_s` what it was made with."""

    def __init__(self, work_s: float) -> None:
        self._work_s = work_s
        self._pictures: UInt8Array = np.zeros((GROUP_SIZE, 8, 8, 3), np.uint8)

    async def start(self) -> None:
        return None

    async def ping(self) -> str:
        return "here"

    async def roll_group(self, request: GroupRequest) -> tuple[GroupRollout, UInt8Array]:
        await asyncio.sleep(self._work_s)
        return GroupRollout(request, (_TRAJECTORY,) * request.group_size, "rollout", 0.0, self._work_s), self._pictures

    async def score(self, pictures: Any, prompts: Sequence[Prompt]) -> RewardAnswer:
        return RewardAnswer([Score(0.5)] * len(prompts))


class PingedActor:
    """What a heartbeat is sent to."""

    async def ping(self) -> str:
        return node_id()


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

    async def measure(self, drive: Callable[[Controller, GroupRoller], Coroutine[Any, Any, float]]) -> float:
        """Make the pools, drive them, end them."""

        async def on_change(worker_id: str, state: str) -> None:
            if self.registry is not None:
                await self.registry.set_worker(worker_id, worker_id.rpartition("-")[0], state)

        def hooks(make_actor: Any, start: Any) -> PoolHooks:
            return PoolHooks(
                spawn=lambda worker_id: LocalActor(PretendingWorker(self.work_s)),
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


async def drive_at_rate(controller: Controller, roller: GroupRoller, duration_s: float) -> float:
    """Share of one core that the process is busy for, when groups come at GROUPS_PER_S."""
    num_groups = round(duration_s * GROUPS_PER_S)
    queue = _endless_queue(num_groups)
    wall_s, busy_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as groups:
        for number in range(num_groups):
            await asyncio.sleep(max(0.0, wall_s + number / GROUPS_PER_S - time.perf_counter()))
            groups.create_task(controller.roll(roller, queue))
    return (time.process_time() - busy_s) / (time.perf_counter() - wall_s)


def measure(scope: Scope) -> list[Table]:
    """Both tables."""
    num_groups, duration_s = scope.pick(quick=300, full=2000), float(scope.pick(quick=4, full=20))
    rows, shares = [], []
    with tempfile.TemporaryDirectory(prefix="bicot-bench-") as directory, _redis(Path(directory)) as url:
        for num_workers in NUM_WORKERS:
            fastest = Controller(num_workers, 0.0, None, Patience())
            # So long that one worker in four is at a group at any time.
            full = Controller(num_workers, num_workers / GROUPS_PER_S / 4, None, Patience())
            most = _run(url, fastest, lambda c, r: drive_at_most(c, r, num_groups))
            busy = _run(url, full, lambda c, r: drive_at_rate(c, r, duration_s))
            plain = _run(None, replace(full, patience=NEVER), lambda c, r: drive_at_rate(c, r, duration_s))
            rows.append((str(num_workers), spread([most]), f"{100 * busy:.1f} %"))
            shares.append((str(num_workers), *(f"{100 * share:.1f} %" for share in (plain, busy, busy - plain))))
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
        Table(
            "Overhead of ledger and heartbeats",
            f"The same at {GROUPS_PER_S:g} groups a second without either, and with both (a heartbeat a worker every "
            f"{Patience().heartbeat_s:g} s). The difference is their share of a step's time.",
            ("rollout workers", "busy without", "busy with", "difference"),
            tuple(shares),
        ),
    ]


def _run(
    url: str | None, controller: Controller, drive: Callable[[Controller, GroupRoller], Coroutine[Any, Any, float]]
) -> float:
    async def with_ledger() -> float:
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


def _endless_queue(num_groups: int) -> TrajectoryQueue:
    """Room for all, so that the queue costs its work and no waiting."""
    return TrajectoryQueue(num_groups + GROUPS_PER_STEP, GROUPS_PER_STEP)


_TRAJECTORY = Trajectory(
    semantic_prompt_ids=np.zeros(32, np.int32),
    cot_ids=np.zeros(24, np.int32),
    cot_logprobs=np.zeros(24, np.float32),
    image_prompt_ids=np.zeros(48, np.int32),
    image_ids=np.zeros(64, np.int32),
    image_logprobs=np.zeros(64, np.float32),
    cot_text="a red star",
    guidance_scale=2.0,
    seed=0,
    oldest_weight_version=0,
    newest_weight_version=0,
)
