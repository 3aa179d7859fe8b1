"""The order in which nodes load weights."""

from __future__ import annotations

import asyncio
import math
from typing import cast

import pytest

from cluster.learning import ObjectStoreSync
from cluster.learning.waves import waves
from cluster.pools import ActorPool
from cluster.pools.member import Member
from configs.schema import WeightSyncConfig
from rollout.records import WeightVersion


def test_each_wave_has_twice_as_many_nodes_with_all_of_their_workers() -> None:
    items = [(f"n{index // 2}", index) for index in range(20)]  # ten nodes with two workers each
    served = list(waves(items))
    assert [len(wave) for wave in served] == [2, 4, 8, 6]
    assert sorted(item for wave in served for item in wave) == list(range(20))
    assert all({item ^ 1 for item in wave} == set(wave) for wave in served), "a node's workers come together"


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 8, 62, 100])
def test_no_wave_is_larger_than_the_number_of_nodes_that_can_serve_it(num_nodes: int) -> None:
    served = list(waves([(f"n{index}", index) for index in range(num_nodes)]))
    have_it = 1  # the learner's node
    for wave in served:
        assert len(wave) <= have_it
        have_it += len(wave)
    assert have_it == num_nodes + 1
    assert len(served) == math.ceil(math.log2(num_nodes + 1))


def test_workers_whose_node_is_not_known_yet_are_served_and_count_as_alone() -> None:
    served = list(waves([("", 1), ("n0", 2), ("", 3)]))
    assert [len(wave) for wave in served] == [1, 2]
    assert sorted(item for wave in served for item in wave) == [1, 2, 3]
    assert list(waves([])) == []


async def test_a_slow_node_does_not_hold_up_the_next_wave() -> None:
    version, loaded, never = WeightVersion(0, 1), [], asyncio.Event()

    class Pool:
        members = tuple(Member(f"rollout-{number}", None, node_id=f"n{number}") for number in range(4))

        async def load(self, member: Member, invoke: object, timeout_s: float) -> WeightVersion | None:
            if member.worker_id == "rollout-1":
                await asyncio.wait_for(never.wait(), 5)  # on its way until the others are done
                return None
            loaded.append(member.worker_id)
            if len(loaded) == 3:
                never.set()
            return version

    sync = ObjectStoreSync(WeightSyncConfig())
    sync._version = version
    assert await asyncio.wait_for(sync.deliver(cast(ActorPool, Pool())), 5) == 1
    assert loaded == ["rollout-0", "rollout-2", "rollout-3"]
