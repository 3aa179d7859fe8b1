"""An actor with a placement group of its own, where Ray's head is away."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.actors import dedicated_placement
from cluster.actors.dedicated_placement import OwnPlacement, SharedPlaces

WAIT_S = 10.0


def test_ending_an_actor_does_not_wait_until_rays_head_has_taken_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_back, removed, killed = threading.Event(), threading.Event(), []

    def remove(group: Any) -> None:
        assert is_back.wait(WAIT_S)
        removed.set()

    monkeypatch.setattr(dedicated_placement, "placement_group", lambda *_, **__: "group")
    monkeypatch.setattr(dedicated_placement, "remove_placement_group", remove)
    monkeypatch.setattr(dedicated_placement, "spawn", lambda *_, **__: "actor")
    monkeypatch.setattr("ray.kill", killed.append)
    placement = OwnPlacement()
    handle: Any = placement.spawn(object, num_cpus=1, num_gpus=0)
    placement.end(handle)
    assert (killed, removed.is_set()) == (["actor"], False)
    is_back.set()
    assert removed.wait(WAIT_S)


def test_a_worker_takes_the_place_of_the_one_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []
    removed = threading.Event()
    spawned: list[tuple[str, int]] = []

    def spawn(_: type, name: str, *, scheduling_strategy: Any, num_cpus: float) -> str:
        spawned.append((name, scheduling_strategy.placement_group_bundle_index))
        return name

    group: Any = SimpleNamespace(bundle_count=2)
    monkeypatch.setattr(dedicated_placement, "spawn", spawn)
    monkeypatch.setattr(dedicated_placement, "PlacementGroupSchedulingStrategy", Strategy)
    monkeypatch.setattr(dedicated_placement, "remove_placement_group", lambda _: removed.set())
    monkeypatch.setattr("ray.kill", killed.append)
    places = SharedPlaces()
    places.group = group
    handles: list[Any] = [places.spawn(object, name, num_cpus=1, label_selector={"zone": "a"}) for name in "ab"]
    places.end(handles[1])
    places.spawn(object, "c", num_cpus=1)
    places.end(handles[0])
    places.spawn(object, "d", num_cpus=1)
    assert spawned == [("a", 0), ("b", 1), ("c", 1), ("d", 0)]
    assert killed == ["b", "a"]
    places.close()
    assert removed.wait(WAIT_S)
    assert places.group is None


class Strategy:
    """Where an actor is to go, without Ray."""

    def __init__(self, group: Any, placement_group_bundle_index: int) -> None:
        self.placement_group_bundle_index = placement_group_bundle_index
