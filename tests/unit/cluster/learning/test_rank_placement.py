"""Whether one node can hold all ranks of the learner."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from cluster.learning import LearnerGroup, learner_group, rank_placement
from cluster.learning.rank_placement import bundle_of, fits_one_node
from configs.schema import RunConfig

WAIT_S = 10.0

NODES = [{"CPU": 8.0}, {"CPU": 64.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 8.0, "memory": 1e11}]


@pytest.mark.parametrize(
    ("bundle", "num", "fits"),
    [
        ({"CPU": 1.0, "GPU": 1.0}, 8, True),
        ({"CPU": 4.0, "GPU": 1.0}, 8, False),
        ({"CPU": 2.0, "GPU": 1.0}, 8, True),
        ({"CPU": 1.0, "GPU": 1.0}, 9, False),
        ({"CPU": 8.0}, 8, True),
        ({"GPU": 0.5}, 16, True),
        ({"GPU": 0.1}, 80, True),
    ],
)
def test_one_node_holds_all_ranks_or_not(bundle: dict[str, float], num: int, fits: bool) -> None:
    assert fits_one_node(bundle, num, NODES) is fits


def config_of(**learner: float) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"path": "org/model", "dtype": "float32"},
            "data": {"train": "shapes:train"},
            "rewards": [{"name": "shapes"}],
            "learner": learner,
        }
    )


def test_a_rank_that_asks_for_nothing_still_has_a_place() -> None:
    assert bundle_of(config_of(cpus_per_rank=0)) == {"CPU": 0.001}


def in_turns(**learner: float) -> RunConfig:
    config = config_of(num_ranks=2, zero_stage=2, **learner)
    rollout = {"colocate": True, "num_workers": 2, "gpus_per_worker": learner.get("gpus_per_rank", 0.0)}
    tree = config.model_dump() | {"rollout": rollout, "algorithm": {"max_staleness": 0}}
    return RunConfig.model_validate(tree)


def test_a_rank_that_takes_turns_has_a_place_with_room_for_its_engine() -> None:
    assert bundle_of(in_turns(gpus_per_rank=0.5, cpus_per_rank=2)) == {"CPU": 3.0, "GPU": 1.0}
    assert bundle_of(in_turns()) == {"CPU": 2.0}


class SlowHead:
    """Stands in for Ray where it waits for its head: until `is_back`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_back = threading.Event()
        self.asked: list[str] = []
        monkeypatch.setattr(rank_placement, "placement_group", self._make_group)
        monkeypatch.setattr(rank_placement, "remove_placement_group", self._remove_group)
        monkeypatch.setattr(learner_group, "remove_placement_group", self._remove_group)
        monkeypatch.setattr(learner_group, "spawn_rank", self._spawn)
        monkeypatch.setattr("ray.kill", lambda handle: self.asked.append(f"kill {handle}"))

    bundle_count = 2

    async def ready(self) -> None:
        """Of the group: there is room."""

    def _wait(self, what: str) -> None:
        self.asked.append(what)
        assert self.is_back.wait(WAIT_S)

    def _make_group(self, *_: Any, **__: Any) -> SlowHead:
        self._wait("group")
        return self

    def _remove_group(self, _: Any) -> None:
        self._wait("remove")

    def _spawn(self, config: RunConfig, name: str, rank: int, placement: Any) -> str:
        assert placement is self
        self._wait(f"rank {rank}")
        return name


async def turns_of_the_loop() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


async def test_while_rays_head_is_away_other_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    head = SlowHead(monkeypatch)
    group = LearnerGroup(config_of(num_ranks=1), "run")
    starting = asyncio.create_task(group.start())
    await turns_of_the_loop()
    assert (head.asked, starting.done()) == (["group"], False)
    head.is_back.set()
    await asyncio.wait_for(starting, WAIT_S)
    assert group.ranks == ("run-learner-0",)
    head.is_back.clear()
    closing = asyncio.create_task(group.close())
    await turns_of_the_loop()
    assert (head.asked[1:], closing.done()) == (["rank 0", "kill run-learner-0", "remove"], False)
    head.is_back.set()
    await asyncio.wait_for(closing, WAIT_S)


async def test_a_rank_that_comes_when_nobody_wants_it_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    head = SlowHead(monkeypatch)
    head.is_back.set()
    group = LearnerGroup(config_of(num_ranks=1), "run")
    monkeypatch.setattr(head, "ready", lambda: _clearing(head.is_back))
    starting = asyncio.create_task(group.start())
    async with asyncio.timeout(WAIT_S):
        while "rank 0" not in head.asked:
            await asyncio.sleep(0.001)
    starting.cancel()
    await asyncio.wait({starting})
    head.is_back.set()
    async with asyncio.timeout(WAIT_S):
        while "kill run-learner-0" not in head.asked:
            await asyncio.sleep(0.001)


async def test_a_place_that_engines_share_outlives_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    head = SlowHead(monkeypatch)
    head.is_back.set()
    monkeypatch.setattr(rank_placement, "usable_nodes", lambda: [{"Resources": {"CPU": 8.0}, "Labels": {}}])
    place = await rank_placement.place_ranks(in_turns(), pytest.fail)
    for life in range(2):
        group = LearnerGroup(in_turns(), "run", life)
        await asyncio.wait_for(group.start(place), WAIT_S)
        await asyncio.wait_for(group.close(), WAIT_S)
    assert head.asked.count("group") == 1
    assert "remove" not in head.asked


async def _clearing(event: threading.Event) -> None:
    event.clear()
