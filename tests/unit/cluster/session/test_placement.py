from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.session import plan_placement
from cluster.session.nodes import check_registry_is_reached
from cluster.session.placement import COLOCATED, PlacementPlan, check_fits, check_labels
from configs.errors import PlacementError
from configs.schema import RunConfig

Nodes = Sequence[Mapping[str, float]]


def plan_of(
    learner: Mapping[str, Any] | None = None,
    rollout: Mapping[str, Any] | None = None,
    rewards: Sequence[Mapping[str, Any]] = ({"name": "shapes"},),
    **algorithm: Any,
) -> PlacementPlan:
    return plan_placement(
        RunConfig.model_validate(
            {
                "model": {"path": "janus", "dtype": "float32"},
                "data": {"train": "prompts.txt"},
                "algorithm": algorithm,
                "learner": learner or {},
                "rollout": rollout or {},
                "rewards": list(rewards),
            }
        )
    )


def check_against(plan: PlacementPlan, nodes: Nodes) -> None:
    together = {resource: sum(node.get(resource, 0.0) for node in nodes) for resource in ("CPU", "GPU")}
    check_fits(plan, together, nodes)


def test_every_actor_has_a_bundle_with_a_name_of_its_own():
    plan = plan_of({"num_ranks": 2}, {"num_workers": 3}, [{"name": "shapes", "replicas": 2}, {"name": "m:C"}])
    names = [bundle.name for bundle in plan.bundles]
    assert len(set(names)) == len(names)
    assert [bundle.role for bundle in plan.bundles] == [
        *["learner"] * 2,
        *["rollout"] * 3,
        *["rewards.shapes"] * 2,
        "rewards.m:C",
        "service",
    ]


def test_who_takes_turns_is_planned_as_one_and_on_one_gpu():
    learner = {"num_ranks": 2, "gpus_per_rank": 0.5, "cpus_per_rank": 2, "zero_stage": 2, "node_labels": {"zone": "a"}}
    rollout = {"num_workers": 2, "gpus_per_worker": 0.4, "colocate": True, "node_labels": {"zone": "a"}}
    plan = plan_of(learner, rollout, [{"name": "shapes", "gpus_per_replica": 0.1, "replicas": 2}], max_staleness=0)
    pairs = [bundle for bundle in plan.bundles if bundle.role == COLOCATED]
    assert [bundle.name for bundle in pairs] == ["learner-0 + rollout-0", "learner-1 + rollout-1"]
    assert {(bundle.cpus, bundle.gpus) for bundle in pairs} == {(3.0, 0.9)}
    assert all(bundle.labels == {"zone": "a"} for bundle in pairs)
    shares = [[bundle.name for bundle in gpu] for gpu in plan.shared_gpus]
    assert shares == [["learner-0 + rollout-0", "shapes-0"], ["learner-1 + rollout-1", "shapes-1"]]


def test_cpus_add_up_and_are_rounded_up_once():
    assert plan_of(rewards=[{"name": "shapes", "replicas": 3, "cpus_per_replica": 0.1}]).num_cpus == 3
    assert (
        plan_of({"cpus_per_rank": 0.5}, {"cpus_per_worker": 0.5}, [{"name": "shapes", "cpus_per_replica": 0}]).num_cpus
        == 1
    )


def test_ten_tenths_of_a_gpu_are_one_gpu():
    assert plan_of(rewards=[{"name": "shapes", "replicas": 10, "gpus_per_replica": 0.1}]).num_gpus == 1


def test_fractions_that_do_not_add_up_to_one_need_more_gpus_than_their_sum():
    plan = plan_of(rewards=[{"name": "shapes", "replicas": 3, "gpus_per_replica": 0.6}])
    assert plan.num_gpus == 3
    assert [len(gpu) for gpu in plan.shared_gpus] == [1, 1, 1]


def test_a_gpu_is_shared_across_roles_and_never_beyond_its_whole():
    plan = plan_of(
        {"gpus_per_rank": 0.5},
        {"gpus_per_worker": 0.3},
        [{"name": "shapes", "gpus_per_replica": 0.2}, {"name": "m:C", "gpus_per_replica": 0.4}],
    )
    shares = [[bundle.name for bundle in gpu] for gpu in plan.shared_gpus]
    assert shares == [["learner-0", "m:C-0"], ["rollout-0", "shapes-0"]]
    assert plan.num_gpus == 2


def test_whole_gpus_are_never_shared():
    plan = plan_of({"gpus_per_rank": 1, "num_ranks": 4}, {"gpus_per_worker": 2, "tensor_parallel_size": 2})
    assert plan.num_gpus == 6
    assert plan.shared_gpus == ()


def test_more_than_one_gpu_must_be_a_whole_number():
    with pytest.raises(PlacementError, match=r"rewards\.shapes: 1\.5 GPUs for one actor"):
        plan_of(rewards=[{"name": "shapes", "gpus_per_replica": 1.5}])


def test_the_description_is_a_table_that_names_who_shares_a_gpu():
    plan = plan_of({"gpus_per_rank": 0.5}, {"gpus_per_worker": 0.5, "num_workers": 2})
    lines = [line.split() for line in plan.describe().splitlines()]
    assert lines[0] == ["actors", "CPUs", "GPUs"]
    assert lines[1] == ["learner", "1", "1", "0.5"]
    assert lines[2] == ["rollout", "2", "2", "(2", "x", "1)", "1", "(2", "x", "0.5)"]
    assert ["together", "5", "4", "2"] in lines
    assert "one GPU for learner-0 (0.5) + rollout-0 (0.5)" in plan.describe()


def test_a_plan_fits_exactly_what_it_asks_for():
    plan = plan_of({"gpus_per_rank": 1}, {"gpus_per_worker": 1})
    check_against(plan, [{"CPU": 3.0, "GPU": 2.0}])
    check_against(plan, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0}, {"GPU": 1.0}])


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([{"CPU": 2.0, "GPU": 2.0}], "the run needs 3 CPUs, the cluster has 2"),
        ([{"CPU": 8.0, "GPU": 1.0}], "the run needs 2 GPUs, the cluster has 1; add nodes with GPUs"),
        ([{"CPU": 8.0}], "the run needs 2 GPUs, the cluster has 0"),
        ([], "the run needs 3 CPUs, the cluster has 0"),
    ],
)
def test_too_little_in_all_is_refused_with_what_is_missing_and_the_plan(nodes: Nodes, message: str):
    plan = plan_of({"gpus_per_rank": 1}, {"gpus_per_worker": 1})
    with pytest.raises(PlacementError) as caught:
        check_against(plan, nodes)
    assert message in str(caught.value)
    assert plan.describe() in str(caught.value)


def test_an_actor_larger_than_every_node_is_refused_though_the_sum_would_do():
    plan = plan_of(rollout={"gpus_per_worker": 4, "tensor_parallel_size": 4})
    with pytest.raises(PlacementError, match=r"rollout: 1 actors need 4 or more GPUs each on one node.*room for 0"):
        check_against(plan, [{"CPU": 8.0, "GPU": 2.0}] * 2)
    check_against(plan, [{"CPU": 8.0, "GPU": 4.0}])


def test_large_actors_that_leave_gaps_on_every_node_are_refused():
    plan = plan_of(rollout={"num_workers": 5, "gpus_per_worker": 3, "tensor_parallel_size": 3})
    with pytest.raises(PlacementError, match=r"5 actors need 3 or more GPUs.*room for 4"):
        check_against(plan, [{"CPU": 32.0, "GPU": 8.0}] * 2)
    check_against(plan, [{"CPU": 32.0, "GPU": 9.0}] * 2)


def test_a_fraction_lies_on_one_gpu_when_places_are_counted():
    plan = plan_of(rewards=[{"name": "shapes", "replicas": 4, "gpus_per_replica": 0.4}])
    check_against(plan, [{"CPU": 8.0, "GPU": 1.0}, {"GPU": 1.0}])
    with pytest.raises(PlacementError):
        check_against(plan, [{"CPU": 8.0, "GPU": 1.0}])


def test_a_plan_without_gpus_fits_a_cluster_without_gpus():
    check_against(plan_of(), [{"CPU": 3.0}])


def test_scores_cannot_be_kept_in_a_redis_that_other_nodes_do_not_reach() -> None:
    tree: dict[str, Any] = {
        "model": {"path": "janus", "dtype": "float32"},
        "data": {"train": "prompts.txt"},
        "rewards": [{"name": "shapes", "cache": True}],
    }
    own = RunConfig.model_validate(tree)
    check_registry_is_reached(own, 1)
    with pytest.raises(
        PlacementError, match=r"rewards\.shapes\.cache: the cluster has 2 nodes, .* set registry\.redis_url"
    ):
        check_registry_is_reached(own, 2)
    check_registry_is_reached(RunConfig.model_validate({**tree, "registry": {"redis_url": "redis://here:6379"}}), 2)
    check_registry_is_reached(RunConfig.model_validate({**tree, "rewards": [{"name": "shapes"}]}), 2)


def test_labels_that_no_node_has_are_refused_by_the_field() -> None:
    plan = plan_of(rollout={"node_labels": {"ray.io/accelerator-type": "H200", "zone": "a"}})
    check_labels(plan, [{"zone": "b"}, {"zone": "a", "ray.io/accelerator-type": "H200", "ray.io/node-id": "1"}])
    with pytest.raises(
        PlacementError, match=r"rollout\.node_labels: no node of the cluster has \{'ray\.io/acc.* --labels"
    ):
        check_labels(plan, [{"zone": "a"}, {"ray.io/accelerator-type": "H200"}])
    with pytest.raises(ValidationError, match="pattern"):
        plan_of(rollout={"node_labels": {"zone": "in(a, b)"}})
