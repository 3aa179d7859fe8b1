"""First runs on several hosts, one after the other on one cluster: what works, and what is refused by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.faults.hosts import Host
from cluster.session.ray_connection import PROJECT_ROOT
from tests.hosts.conftest import cluster_of, disk_with_model
from tests.hosts.ray_cluster import base_settings, host_with, launch, resume, runs

SHARED = "/srv/shared"
RUNS = f"{SHARED}/runs"
MODEL = f"{SHARED}/model"
PLACES = {"learner.node_labels": {"host": "a"}, "rollout.node_labels": {"host": "b"}}
long_story = pytest.mark.proof
pytestmark = pytest.mark.timeout(1800)
"""For a machine that is busy with other work."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disk_with_model(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def hosts(hosts_allowed: None, disk: Path) -> Iterator[dict[str, Host]]:
    with cluster_of({"a": 3, "b": 3}, disk) as made:
        yield made


def test_a_run_over_three_hosts_makes_its_steps_and_resumes(hosts: dict[str, Host], disk: Path) -> None:
    head = hosts["head"]
    run = launch(head, "base", RUNS, disk / "runs", {**base_settings(head, MODEL), **PLACES})
    run.wait_for_steps(1)
    places = [host_with(hosts.values(), actor) for actor in ("Learner", "Rollout", "TrajectoryQueue")]
    assert [place.name for place in places] == ["a", "b", "head"]
    assert run.wait() == 0, run.text
    assert sorted(path.name for path in (run.run_dir / "checkpoints").iterdir())[-1] == "step_000003"
    assert (run.run_dir / "checkpoints/step_000003/model/config.json").exists()
    more = resume(head, "base", RUNS, disk / "runs", {"run.steps": 4})
    assert more.wait() == 0, more.text
    assert run.steps() == [1, 2, 3, 4]


@long_story
def test_without_a_shared_disk_the_run_is_refused_before_it_costs_anything(hosts: dict[str, Host], disk: Path) -> None:
    head = hosts["head"]
    run = launch(head, "unshared", "/srv/runs", head.disk / "runs", base_settings(head, MODEL))
    assert run.wait() == 2, run.text
    assert "is not the same folder on" in run.text
    assert any(hosts[name].address in run.text for name in ("a", "b"))
    assert run.num_steps() == 0


@long_story
def test_a_model_that_one_host_lacks_is_named_with_that_host(hosts: dict[str, Host], disk: Path) -> None:
    head = hosts["head"]
    shutil.copytree(disk / "model", head.disk / "model")
    run = launch(head, "model", RUNS, disk / "runs", base_settings(head, "/srv/model"))
    assert run.wait() != 0
    assert "/srv/model" in run.text
    assert any(hosts[name].address in run.text for name in ("a", "b")), run.text


@long_story
def test_two_learner_ranks_meet_though_their_host_names_are_loopback_addresses(
    hosts: dict[str, Host], disk: Path
) -> None:
    head = hosts["head"]
    ranks = {"learner.num_ranks": 2, "learner.cpus_per_rank": 2, "learner.zero_stage": 1, "learner.micro_batch_size": 4}
    run = launch(head, "ranks", RUNS, disk / "runs", {**base_settings(head, MODEL), **ranks})
    run.wait_for_steps(1)
    assert runs(hosts["a"], "LearnerActor")
    assert runs(hosts["b"], "LearnerActor")
    assert run.wait() == 0, run.text
    assert len(list((run.run_dir / "checkpoints/step_000003/state").glob("rank_*"))) == 2


@long_story
def test_the_warm_start_of_one_host_is_found_by_the_others(hosts: dict[str, Host], disk: Path) -> None:
    head = hosts["head"]
    tiny = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_positions": 256, "num_codes": 128}
    short = {"examples": "shapes", "num_examples": 200, "steps": 20, "vq": {"steps": 100, "autoencoder_steps": 0}}
    settings = {
        **base_settings(head, "tiny-janus"),
        **PLACES,
        "model.tiny": {**tiny, "image_size": 64, "patch_size": 8},
        "warm_start": short,
        "run.steps": 1,
    }
    # The cache lies in each host's home: what one host made, the others do not see.
    run = launch(head, "warm", RUNS, disk / "runs", settings)
    assert run.wait(1200) == 0, run.text
    found = {name: bool(list(hosts[name].disk.glob("home/.cache/bicot/warm_start/*"))) for name in hosts}
    assert found == {"head": True, "a": True, "b": True}


@long_story
def test_a_host_with_other_code_is_named(hosts: dict[str, Host], disk: Path) -> None:
    head, place = hosts["head"], str(PROJECT_ROOT / "rollout")
    other = hosts["b"].disk / "other"
    shutil.copytree(place, other)
    with (other / "worker.py").open("a") as file:
        file.write("\n# another version\n")
    hosts["b"].run("mount", "--bind", "/srv/other", place)
    try:
        run = launch(head, "code", RUNS, disk / "runs", {**base_settings(head, MODEL), **PLACES})
        assert run.wait() != 0, run.text
        assert hosts["b"].address in run.text, run.text
    finally:
        hosts["b"].run("umount", place)


@long_story
def test_a_slow_link_makes_a_worker_late_and_not_dead(hosts: dict[str, Host], disk: Path) -> None:
    head = hosts["head"]
    run = launch(head, "slow", RUNS, disk / "runs", {**base_settings(head, MODEL), **PLACES, "run.steps": 4})
    run.wait_for_steps(1)
    hosts["a"].limit_rate("8mbit")  # a version of the tiny Janus, about 3 MB, takes some seconds
    assert run.wait() == 0, run.text
    assert "died" not in run.text
    assert json.loads((run.run_dir / "summary.json").read_text())["status"] == "finished"
