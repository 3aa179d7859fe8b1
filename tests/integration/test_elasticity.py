"""Elastic pools on several Ray nodes of one machine. The run is a process of its own, see `elastic_run.py`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration import elastic_run
from tests.integration.own_cluster import run_story

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_story(elastic_run.__name__, tmp_path_factory.mktemp("elastic"), timeout_s=400)


def test_the_run_goes_through_all_that_happens_to_its_nodes(run: dict[str, Any]) -> None:
    assert (run["error"], run["status"]) == (None, "stopped")
    assert run["events"] == ["add_node", "kill_node", "drain_node", "stop"]


def test_the_pool_grows_onto_a_node_that_joins_and_all_workers_draw(run: dict[str, Any]) -> None:
    assert "rollout: from 1 to 2 workers; the learner waits for it" in run["notes"]
    assert run["workers"][:2] == ["rollout-0", "rollout-1"]
    assert len(run["workers"]) == 3


def test_a_newcomer_draws_its_share_of_the_steps_after_it_joined(run: dict[str, Any]) -> None:
    """Of two workers with equal places, about a half; a worker that the others outrun would draw next to nothing."""
    assert len(run["shares"]) == 2
    assert all(0.2 < share < 0.8 for share in run["shares"]), run["shares"]


def test_a_removed_node_costs_only_the_groups_that_were_drawn_on_it(run: dict[str, Any]) -> None:
    assert run["sequences"] == list(range(len(run["sequences"])))
    assert run["num_trained"] == len(run["sequences"])
    assert set(run["failed_on"]) <= {"rollout-1"}


def test_a_worker_whose_node_is_told_to_go_leaves_without_losing_a_group(run: dict[str, Any]) -> None:
    last = run["workers"][2]
    assert any(note.startswith(f"{last} leaves: its node is told to go") for note in run["notes"])
    assert last not in run["failed_on"]
    assert run["usable"] == [2, 1], "and no plan counts on it any more"
