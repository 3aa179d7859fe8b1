"""The files for `ray up`, held against Ray's own schema and the clouds' own descriptions of their interfaces."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.session.placement import plan_placement
from configs.load import load_config

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "cluster" / "clouds" / "ray_up"
CLOUDS = ("aws", "gcp", "azure")


def read(cloud: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{cloud}.yaml").read_text(encoding="utf-8"))


def node_configs(cloud: str) -> dict[str, dict[str, Any]]:
    return {name: kind["node_config"] for name, kind in read(cloud)["available_node_types"].items()}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_takes_the_file(cloud: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(read(cloud))))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_refuses_a_misspelt_key(cloud: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    tree = read(cloud)
    tree["available_node_types"]["rollout"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(tree))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_its_nodes_hold_the_plan_of_the_config_that_it_is_for(cloud: str) -> None:
    plan = plan_placement(load_config(ROOT / "configs" / "janus_pro_7b_cluster.yaml"))
    kinds = read(cloud)["available_node_types"]
    gpus = sum(kind["resources"].get("GPU", 0) * kind.get("max_workers", 0) for kind in kinds.values())
    assert gpus >= plan.num_gpus
    learner_gpus = sum(bundle.gpus for bundle in plan.bundles if bundle.role == "learner")
    assert kinds["learner"]["resources"]["GPU"] >= learner_gpus, "its ranks stay on one node"
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) == read(cloud)["max_workers"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_only_rollout_nodes_are_spot_and_none_is_needed(cloud: str) -> None:
    kinds = read(cloud)["available_node_types"]
    spot = {name for name, kind in kinds.items() if "spot" in json.dumps(kind["node_config"]).lower()}
    assert spot == {"rollout"}
    assert {name: kind.get("labels", {}).get("market") for name, kind in kinds.items()} == {
        "head": None,
        "learner": "on-demand",
        "rollout": "spot",
    }
    assert kinds["rollout"]["min_workers"] == 0
    assert kinds["head"]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_nobody_gets_in_without_the_token(cloud: str) -> None:
    tree = read(cloud)
    assert "--env RAY_AUTH_MODE=token" in tree["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in tree["file_mounts"]
    (start,) = [command for command in tree["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start


@pytest.mark.parametrize("kind", ["head", "learner", "rollout"])
def test_aws_knows_every_field_and_machine(kind: str) -> None:
    loaders = pytest.importorskip("botocore.loaders", reason="needs botocore (the extra `dev`)")
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    model = ServiceModel(loaders.Loader().load_service_model("ec2", "service-2"))
    config = {**node_configs("aws")[kind], "MinCount": 1, "MaxCount": 1}
    shape = model.operation_model("RunInstances").input_shape
    report = ParamValidator().validate(config, shape)
    assert not report.has_errors(), report.generate_report()
    assert config["InstanceType"] in shape.members["InstanceType"].enum


@pytest.mark.parametrize("kind", ["head", "learner", "rollout"])
def test_google_knows_every_field(kind: str) -> None:
    discovery = pytest.importorskip("googleapiclient.discovery_cache", reason="needs google-api-python-client (`dev`)")
    schemas = json.loads(
        (Path(discovery.__file__).parent / "documents" / "compute.v1.json").read_text(encoding="utf-8")
    )["schemas"]
    config = copy.deepcopy(node_configs("gcp")[kind])
    if "scheduling" in config:  # Ray wants a list of maps with one key each, and makes one of them
        config["scheduling"] = {key: value for part in config["scheduling"] for key, value in part.items()}
    assert unknown_fields(config, "Instance", schemas) == []


def unknown_fields(value: Any, schema: str, schemas: dict[str, Any], path: str = "") -> list[str]:
    """Paths of the fields, and of the values of enumerations, that Google's description does not have."""
    found = []
    for key, inner in value.items():
        known = schemas[schema]["properties"].get(key)
        here = f"{path}.{key}"
        if known is None:
            found.append(here)
            continue
        if "enum" in known and inner not in known["enum"]:
            found.append(f"{here}={inner}")
        of = known.get("$ref") or known.get("items", {}).get("$ref")
        if of:
            for part in inner if isinstance(inner, list) else [inner]:
                found += unknown_fields(part, of, schemas, here)
    return found


def test_a_field_that_google_does_not_know_is_found() -> None:
    schemas = {"Instance": {"properties": {"scheduling": {"$ref": "Scheduling"}}}, "Scheduling": {"properties": {}}}
    assert unknown_fields({"scheduling": {"spot": True}, "x": 1}, "Instance", schemas) == [".scheduling.spot", ".x"]


@pytest.mark.parametrize("kind", ["head", "learner", "rollout"])
def test_rays_template_for_azure_has_every_parameter(kind: str) -> None:
    import ray.autoscaler._private._azure as azure

    (folder,) = azure.__path__
    template = json.loads((Path(folder) / "azure-vm-template.json").read_text(encoding="utf-8"))
    assert set(node_configs("azure")[kind]["azure_arm_parameters"]) <= set(template["parameters"])
