"""An actor with a placement group of its own, where Ray's head is away."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cluster.actors import dedicated_placement
from cluster.actors.dedicated_placement import OwnPlacement

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
