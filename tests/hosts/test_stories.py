"""Hosts that go and come while a run is on; each story has a cluster of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster.faults.host_ray import join
from tests.hosts.conftest import MakeCluster
from tests.hosts.ray_cluster import base_settings, host_with, launch, runs
from tests.waiting import wait_until

SHARED = "/srv/shared"
RUNS = f"{SHARED}/runs"
MODEL = f"{SHARED}/model"
pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]
"""For a machine that is busy with other work."""

# Groups of 10 pictures of 64 x 64 do not travel in the answer, which takes 100 KiB: they lie in the object store.
LARGE_GROUPS = {"algorithm.group_size": 10, "learner.micro_batch_size": 20, "algorithm.max_staleness": 2}
WITHOUT_THE_LOST = 4
"""Steps that tell of a recovery: those which were ready when the host was lost are three."""


def test_hosts_that_are_lost_one_after_the_other_are_replaced_and_no_step_is_missing(
    make_cluster: MakeCluster, disk: Path
) -> None:
    """The host of the rollout worker, of the reward, of the learner: each with its pictures, each comes back as a new
    one. What a lost learner has made since its last checkpoint is made again."""
    hosts = make_cluster({"a": 2, "b": 2, "c": 2}, disk)  # any two of them hold all workers
    head = hosts.pop("head")
    # With no CPU at all the reward might lie on the head, which is not to be lost.
    own = {"rewards.0.cpus_per_replica": 0.1, "run.steps": 1000}
    run = launch(head, "lost", RUNS, disk / "runs", {**base_settings(head, MODEL), **LARGE_GROUPS, **own})
    run.wait_for_steps(2)
    for actor in ("RolloutActor", "RewardActor", "LearnerActor"):
        lost, before = host_with(hosts.values(), actor), run.num_steps()
        lost.cut_off()
        lost.kill()
        run.wait_for_steps(before + WITHOUT_THE_LOST)
        lost.plug_in()
        join(lost, head, 2)
    run.stop()
    assert run.steps() == list(range(1, run.num_steps() + 1))


def test_a_rollout_host_whose_cable_is_out_for_a_while_comes_back(make_cluster: MakeCluster, disk: Path) -> None:
    hosts = make_cluster({"a": 2, "b": 1}, disk)
    head = hosts["head"]
    run = launch(head, "cable", RUNS, disk / "runs", {**base_settings(head, MODEL), "run.steps": 1000})
    run.wait_for_steps(2)
    hosts["b"].cut_off()
    before = run.num_steps()
    wait_until(lambda: run.process.poll() is not None or _seconds_since(run.run_dir) > 4, 60, "steps went on")
    hosts["b"].plug_in()
    run.wait_for_steps(before + 3)
    run.stop()


def test_a_host_that_joins_late_gets_work(make_cluster: MakeCluster, disk: Path) -> None:
    hosts = make_cluster({"a": 2, "b": 1, "c": 1}, disk, absent=("c",))
    head = hosts["head"]
    grows = {
        "rollout.num_workers": {"min": 1, "max": 2},
        "cluster.scaling.grow_after_s": 1,
        "cluster.scaling.every_s": 1,
        "algorithm.max_staleness": 2,
        "run.steps": 1000,
    }
    run = launch(head, "late", RUNS, disk / "runs", {**base_settings(head, MODEL), **grows})
    run.wait_for_steps(2)
    join(hosts["c"], head, 1)
    wait_until(lambda: runs(hosts["c"], "RolloutActor"), 500, f"host c got no worker:\n{run.text}")
    run.stop()


def _seconds_since(run_dir: Path) -> float:
    return time.time() - (run_dir / "metrics.jsonl").stat().st_mtime
