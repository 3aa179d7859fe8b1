"""How many more members of a pool the cluster could hold."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from cluster.pools import ActorPool
from cluster.pools.elasticity import ElasticPool, room_for
from configs.worker_sections import PoolSize
from tests.unit.cluster.pools.test_pool import Scene


def pool_of(cpus: float, gpus: float) -> ElasticPool:
    pool: ActorPool = Scene().pool
    return ElasticPool(pool, PoolSize(min=1, max=9), cpus, gpus)


@pytest.mark.parametrize(
    ("cpus", "gpus", "free", "room"),
    [
        (1, 0, {"CPU": 3.5}, 3),
        (0.1, 0, {"CPU": 0.3}, 3),  # 0.1 + 0.1 + 0.1 is a little more than 0.3
        (1, 1, {"CPU": 8.0, "GPU": 2.0}, 2),
        (1, 0.4, {"CPU": 8.0, "GPU": 1.0}, 2),
        (4, 1, {"CPU": 8.0, "GPU": 4.0}, 2),
        (1, 1, {"CPU": 8.0}, 0),
        (1, 0, {}, 0),
        (0, 0, {}, 9),
    ],
)
async def test_room_is_what_the_scarcest_resource_leaves(
    cpus: float, gpus: float, free: Mapping[str, float], room: int
) -> None:
    assert room_for(pool_of(cpus, gpus), free) == room
