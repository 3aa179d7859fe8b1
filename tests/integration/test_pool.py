"""The actor pool on real Ray: balance, replacement of the dead and the hanging, failures to start."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
import ray
from ray.core.generated import gcs_pb2
from ray.util import placement_group_table

from cluster.actors.dedicated_placement import OwnPlacement
from cluster.actors.queue import TrajectoryQueueActor
from cluster.actors.spawning import node_id, spawn
from cluster.pools import ActorPool, Patience, PoolHooks
from cluster.pools.remote_errors import WorkerLostError
from configs.errors import ModelError

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Worker:
    """Answers with its process id; can die or hang on demand."""

    def __init__(self, fails: bool = False) -> None:
        self._fails = fails

    async def start(self) -> None:
        if self._fails:
            raise ModelError("no model folder at /nowhere")

    async def pid(self) -> int:
        return os.getpid()

    async def die(self) -> None:
        os._exit(1)

    async def hang(self) -> None:
        await asyncio.sleep(3600)

    async def ping(self) -> str:
        return node_id()

    async def freeze(self) -> None:
        """The whole process answers nothing any more, as one that is stopped or deadlocked."""
        time.sleep(3600)


def make_pool(size: int, max_calls: int, changes: list[tuple[str, str]], fails: bool = False) -> ActorPool:
    async def start(handle: Any) -> None:
        await handle.start.remote()

    async def on_change(worker_id: str, state: str) -> None:
        changes.append((worker_id, state))

    hooks = PoolHooks(
        spawn=lambda worker_id: ray.remote(Worker).options(num_cpus=0.1).remote(fails),
        start=start,
        on_change=on_change,
        note=lambda text: None,
    )
    return ActorPool("worker", size, max_calls, hooks, Patience(heartbeat_s=0.5, heartbeat_timeout_s=3.0))


async def test_calls_spread_over_all_members() -> None:
    pool = make_pool(2, 1, [])
    await asyncio.wait_for(pool.start(), 60)
    pids = await asyncio.gather(*(pool.call(lambda handle: handle.pid.remote(), 30) for _ in range(8)))
    assert len(set(pids)) == 2
    await pool.close()


async def test_a_member_that_dies_is_replaced_by_a_new_one_and_its_call_fails_by_name() -> None:
    changes: list[tuple[str, str]] = []
    pool = make_pool(1, 4, changes)
    await asyncio.wait_for(pool.start(), 60)
    with pytest.raises(WorkerLostError, match="worker-0 died"):
        await pool.call(lambda handle: handle.die.remote(), 30)
    assert await asyncio.wait_for(pool.call(lambda handle: handle.pid.remote(), 30), 60) > 0
    assert pool.num_lost == 1
    assert changes == [("worker-0", s) for s in ("JOINING", "STALE", "READY", "DEAD")] + [
        ("worker-1", s) for s in ("JOINING", "STALE", "READY")
    ]
    await pool.close()


async def test_a_member_that_hangs_is_replaced_after_the_timeout() -> None:
    pool = make_pool(1, 4, [])
    await asyncio.wait_for(pool.start(), 60)
    with pytest.raises(WorkerLostError, match=r"did not answer within 0\.5 s"):
        await pool.call(lambda handle: handle.hang.remote(), 0.5)
    assert await asyncio.wait_for(pool.call(lambda handle: handle.pid.remote(), 30), 60) > 0
    await pool.close()


async def test_a_frozen_member_is_noticed_and_replaced_though_nobody_calls_it() -> None:
    changes: list[tuple[str, str]] = []
    pool = make_pool(1, 4, changes)
    await asyncio.wait_for(pool.start(), 60)
    (member,) = pool.members
    member.handle.freeze.remote()
    async with asyncio.timeout(60):
        while ("worker-1", "READY") not in changes:
            await asyncio.sleep(0.05)
    assert [state for worker_id, state in changes if worker_id == "worker-0"] == [
        *("JOINING", "STALE", "READY"),
        *("SUSPECT", "DEAD"),
    ]
    await pool.close()


async def test_a_member_that_cannot_start_fails_the_pool_with_its_own_error() -> None:
    pool = make_pool(2, 4, [], fails=True)
    with pytest.raises(ModelError, match="no model folder at /nowhere"):
        await asyncio.wait_for(pool.start(), 60)
    await pool.close()


async def test_an_actor_with_a_place_of_its_own_gives_it_back_when_it_ends() -> None:
    earlier = set(placement_group_table())
    placement = OwnPlacement()
    handle = placement.spawn(Worker, name="placed", num_cpus=0.5, num_gpus=0)
    assert await asyncio.wait_for(handle.ping.remote(), 60) == ray.get_runtime_context().get_node_id()
    (group_id,) = set(placement_group_table()) - earlier
    assert placement_group_table()[group_id]["state"] == "CREATED"
    assert list(placement_group_table()[group_id]["bundles"].values()) == [{"CPU": 0.5}]
    placement.end(handle)
    async with asyncio.timeout(30):
        while placement_group_table()[group_id]["state"] != "REMOVED":
            await asyncio.sleep(0.05)


def test_rays_logs_and_dashboard_call_an_actor_by_its_name() -> None:
    handle = spawn(TrajectoryQueueActor, 2, 1, 0, name="trial-queue", num_cpus=0)
    try:
        assert ray.get(handle.num_queued.remote()) == 0
        table = ray._private.state.state._connect_and_get_accessor().get_actor_info(handle._actor_id)
        assert gcs_pb2.ActorTableData.FromString(table).repr_name == "trial-queue"
    finally:
        ray.kill(handle)
