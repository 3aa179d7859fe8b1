"""Ray's autoscaler adds nodes because a run asks, and takes them away when it asks no more: see `autoscaled_run.py`.

Version 1 is that of `ray up`, version 2 that of KubeRay.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration import autoscaled_run
from tests.integration.own_cluster import run_story

pytestmark = [pytest.mark.slow, pytest.mark.proof, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=["1", "2"], ids=["version 1", "version 2"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_story(autoscaled_run.__name__, tmp_path_factory.mktemp("autoscaled"), request.param, timeout_s=500)


def test_a_node_comes_for_the_run_and_another_for_the_worker_that_the_pool_asks_for(run: dict[str, Any]) -> None:
    assert (run["error"], run["status"]) == (None, "stopped")
    assert run["num_nodes"]["grown"] == 2
    assert len(run["workers"]) == 2, "the newcomer drew groups that were trained on"


def test_an_idle_node_goes_though_the_run_goes_on(run: dict[str, Any]) -> None:
    """Nothing of the run that asks for no CPU holds it."""
    assert run["num_nodes"]["shrunk"] == 1
    assert any("rollout: from 2 to 1 workers" in note for note in run["notes"])


def test_no_group_is_lost_on_the_way(run: dict[str, Any]) -> None:
    assert run["sequences"] == list(range(len(run["sequences"])))
    assert run["failures"] == []
