"""First runs on several hosts, and hosts that go while a run is on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.faults.host_ray import join
from cluster.faults.hosts import Host
from tests.hosts.conftest import MakeCluster
from tests.hosts.ray_cluster import base_settings, launch, resume
from tests.waiting import wait_until

SHARED = "/srv/shared"
RUNS = f"{SHARED}/runs"
MODEL = f"{SHARED}/model"
long_story = pytest.mark.proof
pytestmark = pytest.mark.timeout(1800)
"""For a machine that is busy with other work."""


@pytest.fixture
def disk(shared: Path, tiny_model: Path) -> Path:
    """The shared disk, with the model on it."""
    shutil.copytree(tiny_model, shared / "model")
    return shared


def host_with(hosts: dict[str, Host], actor: str) -> Host:
    """The host on which an actor of that class runs."""
    for host in hosts.values():
        for process in host.processes():
            try:
                if actor in process.name() or actor in " ".join(process.cmdline()):
                    return host
            except psutil.NoSuchProcess:
                continue
    raise AssertionError(f"no host runs a {actor}")


def test_a_run_over_three_hosts_makes_its_steps_and_resumes(make_cluster: MakeCluster, disk: Path) -> None:
    hosts = make_cluster({"a": 3, "b": 3}, shared=disk)
    head = hosts["head"]
    places = {"learner.node_labels": {"host": "a"}, "rollout.node_labels": {"host": "b"}}
    run = launch(head, "base", RUNS, disk / "runs", {**base_settings(head, MODEL), **places})
    run.wait_for_steps(1)
    assert (host_with(hosts, "LearnerActor"), host_with(hosts, "RolloutActor")) == (hosts["a"], hosts["b"])
    assert host_with(hosts, "TrajectoryQueueActor") is head
    assert run.wait() == 0, run.text
    assert run.num_steps() == 6
    assert sorted(path.name for path in (run.run_dir / "checkpoints").iterdir())[-1] == "step_000006"
    assert (run.run_dir / "checkpoints/step_000006/model/config.json").exists()
    more = resume(head, "base", RUNS, disk / "runs", {"run.steps": 8})
    assert more.wait() == 0, more.text
    steps = [json.loads(line)["step"] for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))


@long_story
def test_without_a_shared_disk_the_run_is_refused_before_it_costs_anything(
    make_cluster: MakeCluster, disk: Path
) -> None:
    hosts = make_cluster({"a": 2, "b": 1}, shared=disk)
    head = hosts["head"]
    run = launch(head, "unshared", "/srv/runs", head.disk / "runs", base_settings(head, MODEL))
    assert run.wait() == 2, run.text
    assert "is not the same folder on" in run.text
    assert hosts["a"].address in run.text
    assert run.num_steps() == 0


@long_story
def test_a_model_that_one_host_lacks_is_named_with_that_host(make_cluster: MakeCluster, disk: Path) -> None:
    hosts = make_cluster({"a": 2, "b": 1}, shared=disk)
    head = hosts["head"]
    shutil.copytree(disk / "model", head.disk / "model")
    run = launch(head, "model", RUNS, disk / "runs", base_settings(head, "/srv/model"))
    assert run.wait() != 0
    assert "/srv/model" in run.text
    assert any(hosts[name].address in run.text for name in ("a", "b")), run.text


@long_story
def test_two_learner_ranks_meet_though_their_host_names_are_loopback_addresses(
    make_cluster: MakeCluster, disk: Path
) -> None:
    hosts = make_cluster({"a": 2, "b": 2, "c": 1}, shared=disk)
    head = hosts["head"]
    ranks = {"learner.num_ranks": 2, "learner.zero_stage": 1, "learner.micro_batch_size": 4}
    run = launch(head, "ranks", RUNS, disk / "runs", {**base_settings(head, MODEL), **ranks})
    assert run.wait() == 0, run.text
    assert len(list((run.run_dir / "checkpoints/step_000006/state").glob("rank_*"))) == 2


# Groups of 10 pictures of 64 x 64 do not travel in the answer, which takes 100 KiB: they lie in the object store.
LARGE_GROUPS = {"algorithm.group_size": 10, "learner.micro_batch_size": 20, "algorithm.max_staleness": 2}


@long_story
@pytest.mark.parametrize(
    ("actor", "settings"), [("RolloutActor", LARGE_GROUPS), ("RewardActor", LARGE_GROUPS), ("LearnerActor", {})]
)
def test_a_host_that_is_lost_is_replaced_and_the_run_makes_its_steps(
    make_cluster: MakeCluster, disk: Path, actor: str, settings: dict[str, Any]
) -> None:
    """With its pictures; what a lost learner has made since its last checkpoint is made again."""
    hosts = make_cluster({"a": 2, "b": 2, "c": 2}, shared=disk)  # any two of them hold all workers
    head = hosts["head"]
    run = launch(head, "lost", RUNS, disk / "runs", {**base_settings(head, MODEL), **settings, "run.steps": 10})
    run.wait_for_steps(3)
    lost = host_with({name: hosts[name] for name in ("a", "b", "c")}, actor)
    lost.cut_off()
    lost.kill()
    assert run.wait(1200) == 0, run.text
    assert run.num_steps() == 10


@long_story
def test_a_rollout_host_whose_cable_is_out_for_a_while_comes_back(make_cluster: MakeCluster, disk: Path) -> None:
    hosts = make_cluster({"a": 2, "b": 1}, shared=disk)
    head = hosts["head"]
    run = launch(head, "cable", RUNS, disk / "runs", {**base_settings(head, MODEL), "run.steps": 1000})
    run.wait_for_steps(2)
    hosts["b"].cut_off()
    before = run.num_steps()
    wait_until(lambda: run.process.poll() is not None or _seconds_since(run.run_dir) > 4, 60, "steps went on")
    hosts["b"].plug_in()
    run.wait_for_steps(before + 3)
    run.process.terminate()
    run.wait()


@long_story
def test_a_host_that_joins_late_gets_work(make_cluster: MakeCluster, disk: Path) -> None:
    hosts = make_cluster({"a": 2, "b": 1, "c": 1}, shared=disk, absent=("c",))
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
    wait_until(lambda: _runs(hosts["c"], "RolloutActor"), 500, f"host c got no worker:\n{run.text}")
    run.process.terminate()
    run.wait()


@long_story
def test_a_host_with_other_code_is_named(make_cluster: MakeCluster, disk: Path) -> None:
    hosts = make_cluster({"a": 2, "b": 1}, shared=disk)
    head = hosts["head"]
    other = hosts["b"].disk / "other"
    shutil.copytree(Path(__file__).resolve().parents[2] / "rollout", other)
    with (other / "worker.py").open("a") as file:
        file.write("\n# another version\n")
    hosts["b"].run("mount", "--bind", "/srv/other", str(Path(__file__).resolve().parents[2] / "rollout"))
    run = launch(head, "code", RUNS, disk / "runs", base_settings(head, MODEL))
    assert run.wait() != 0, run.text
    assert hosts["b"].address in run.text, run.text


@long_story
def test_the_warm_start_of_one_host_is_found_by_the_others(make_cluster: MakeCluster, disk: Path) -> None:
    hosts = make_cluster({"a": 2, "b": 1}, shared=disk)
    head = hosts["head"]
    tiny = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_positions": 256, "num_codes": 128}
    short = {"examples": "shapes", "num_examples": 200, "steps": 20, "vq": {"steps": 100, "autoencoder_steps": 0}}
    settings = {
        **base_settings(head, "tiny-janus"),
        "model.tiny": {**tiny, "image_size": 64, "patch_size": 8},
        "warm_start": short,
        "run.steps": 2,
    }
    # The cache lies in each host's home: what one host made, the others do not see.
    run = launch(head, "warm", RUNS, disk / "runs", settings)
    assert run.wait(1200) == 0, run.text


@long_story
def test_a_slow_link_makes_a_worker_late_and_not_dead(make_cluster: MakeCluster, disk: Path) -> None:
    hosts = make_cluster({"a": 2, "b": 1}, shared=disk)
    head = hosts["head"]
    run = launch(head, "slow", RUNS, disk / "runs", base_settings(head, MODEL))
    run.wait_for_steps(1)
    hosts["a"].limit_rate("8mbit")  # a version of the tiny Janus, about 3 MB, takes some seconds
    assert run.wait() == 0, run.text
    assert "died" not in run.text


def _runs(host: Host, actor: str) -> bool:
    return any(actor in " ".join(process.cmdline()) for process in host.processes() if process.is_running())


def _seconds_since(run_dir: Path) -> float:
    import time

    return time.time() - (run_dir / "metrics.jsonl").stat().st_mtime
