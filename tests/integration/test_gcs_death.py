"""Ray loses its GCS in the middle of a run, with its tables in Redis or in files (RocksDB).

The run is a process of its own: `gcs_run.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration import gcs_run
from tests.integration.own_cluster import run_story

pytestmark = [pytest.mark.slow, pytest.mark.proof, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=[gcs_run.REDIS, gcs_run.ROCKSDB])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_story(gcs_run.__name__, tmp_path_factory.mktemp("gcs"), request.param, timeout_s=280)


def test_a_run_makes_steps_while_there_is_no_gcs_and_goes_on_with_the_next_one(run: dict[str, Any]) -> None:
    assert (run["error"], run["status"]) == (None, "finished")
    assert run["steps_without"] == [3, 4]
    assert run["steps"] == run["versions"] == list(range(1, gcs_run.NUM_STEPS + 1))


def test_the_ledger_adds_up_when_the_gcs_was_gone_meanwhile(run: dict[str, Any]) -> None:
    num_groups = 2 * gcs_run.NUM_STEPS
    assert run["sequences"] == list(range(num_groups))
    assert run["counts"] == {"trained": num_groups}


def test_a_worker_that_dies_later_is_found_by_name_and_replaced_by_the_next_gcs(run: dict[str, Any]) -> None:
    assert any("rollout-0 died" in note and "starting another in its place" in note for note in run["notes"])
    assert run["last_workers"] == ["rollout-1"]
