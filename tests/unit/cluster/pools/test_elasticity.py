"""What the looks at Ray's nodes come to when Ray's head is gone for a while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
from ray.exceptions import RpcError

import cluster.pools.elasticity
from cluster.pools import Elasticity
from cluster.pools.elasticity import ElasticPool, NodesView
from configs.run_sections import ClusterConfig
from configs.worker_sections import PoolSize
from tests.unit.cluster.pools.test_pool import Scene, started

WAIT_S = 10.0


class Head:
    """Answers looks, fails them, or holds them up; in the thread of the caller."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.error: Exception | None = None
        self.view = NodesView(leaving=(), free={})
        self.num_looks = 0

    def look(self) -> NodesView:
        self.num_looks += 1
        assert self.answers.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return self.view


@pytest.fixture
def head() -> Iterator[Head]:
    head = Head()
    yield head
    head.answers.set()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.001)


def watch(scene: Scene, head: Head, notes: list[str]) -> asyncio.Task[None]:
    config = ClusterConfig.model_validate({"scaling": {"every_s": 0.001}})
    elastic = ElasticPool(scene.pool, PoolSize(min=1, max=1), 1.0, 0.0)
    return asyncio.create_task(Elasticity(config, [elastic], lambda: False, notes.append, head.look).run())


async def test_a_head_that_is_silent_is_told_of_once_and_again_when_it_is_back(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.pools.elasticity, "HEAD_TIMEOUT_S", 0.01)
    scene, notes = await started(Scene(size=1)), list[str]()
    watching = watch(scene, head, notes)
    await until(lambda: len(notes) == 1)
    assert notes[0].startswith("Ray's head is missed, and pools keep their sizes until it is back: it has not answered")
    assert scene.pool.num_ready == 1, "the loop goes on meanwhile"
    head.answers.set()
    await until(lambda: len(notes) == 2)
    assert notes[1] == "Ray's head answers again"
    watching.cancel()
    await scene.pool.close()


async def test_a_head_that_fails_is_asked_again_and_what_it_says_then_is_done(head: Head) -> None:
    scene, notes = await started(Scene(size=1)), list[str]()
    await until(lambda: scene.pool.members[0].node_id == "node")
    head.error = RpcError("connection refused")
    head.answers.set()
    watching = watch(scene, head, notes)
    await until(lambda: head.num_looks > 3)
    assert notes == ["Ray's head is missed, and pools keep their sizes until it is back: connection refused"]
    head.error, head.view = None, NodesView(leaving=("node",), free={})
    await until(lambda: len(notes) > 2)
    assert notes[1] == "Ray's head answers again"
    assert notes[2].startswith("worker-0 leaves: its node is told to go")
    watching.cancel()
    await scene.pool.close()


async def test_whatever_asking_the_head_raises_the_pools_are_looked_after_later(head: Head) -> None:
    scene, notes = await started(Scene(size=1)), list[str]()
    await until(lambda: scene.pool.members[0].node_id == "node")
    head.error = ConnectionError("GCS client: name resolution failed")
    head.answers.set()
    watching = watch(scene, head, notes)
    await until(lambda: head.num_looks > 3)
    assert not watching.done()
    assert len(notes) == 1
    assert notes[0].endswith("ConnectionError: GCS client: name resolution failed")
    head.error = None
    await until(lambda: len(notes) > 1)
    assert notes[1] == "Ray's head answers again"
    watching.cancel()
    await scene.pool.close()


async def test_what_looking_after_a_pool_raises_is_told_once_and_is_not_the_end(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, notes = await started(Scene(size=1)), list[str]()
    await until(lambda: scene.pool.members[0].node_id == "node")
    num_tries = 0

    async def fail(member: object) -> None:
        nonlocal num_tries
        num_tries += 1
        raise OSError("no more file descriptors")

    monkeypatch.setattr("cluster.pools.pool.ActorPool.drain", lambda pool, member: fail(member))
    head.view = NodesView(leaving=("node",), free={})
    head.answers.set()
    watching = watch(scene, head, notes)
    await until(lambda: num_tries > 2)
    watching.cancel()
    assert sum("pools were not looked after: OSError: no more file descriptors" in note for note in notes) == 1
    await scene.pool.close()
