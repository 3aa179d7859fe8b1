"""The manifests for Kubernetes, held against closed schemas of KubeRay and Kubernetes: a misspelt key is an error."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.session.placement import plan_placement
from configs.load import load_config

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "cluster" / "clouds" / "kuberay"
SCHEMAS = os.environ.get("BICOT_KUBERAY_SCHEMAS", "")


def documents(name: str) -> list[dict[str, Any]]:
    return [tree for tree in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")) if tree]


def cluster_spec() -> dict[str, Any]:
    (cluster,) = documents("raycluster")
    return cluster["spec"]


def groups() -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster_spec()["workerGroupSpecs"]}


def pods() -> dict[str, dict[str, Any]]:
    spec = cluster_spec()
    return {"head": spec["headGroupSpec"]["template"]["spec"]} | {
        name: group["template"]["spec"] for name, group in groups().items()
    }


@pytest.mark.skipif(not Path(SCHEMAS or "/nowhere").is_file(), reason="BICOT_KUBERAY_SCHEMAS names no file of schemas")
@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay_knows_every_field(name: str) -> None:
    """BICOT_KUBERAY_SCHEMAS: gzipped JSON, {kind: JSON Schema}, made of KubeRay's custom resource definitions with
    `additionalProperties: false`."""
    jsonschema = pytest.importorskip("jsonschema")
    schemas = json.loads(gzip.decompress(Path(SCHEMAS).read_bytes()))
    (tree,) = documents(name)
    validator = jsonschema.Draft7Validator(schemas[tree["kind"]])
    assert [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(tree)] == []
    tree["spec"]["workerGroupSpec"] = []
    assert list(validator.iter_errors(tree)) != [], "the schema is closed"


@pytest.mark.parametrize("name", ["storage", "redis"])
def test_kubernetes_knows_every_field(name: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (`dev`)")
    for tree in documents(name):
        kubernetes_validate.validate(tree, "1.34", strict=True)


def test_a_pod_of_the_cluster_is_one_that_kubernetes_knows() -> None:
    """KubeRay's schema has what KubeRay adds; the pods in it are Kubernetes' own."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (`dev`)")
    for name, pod in pods().items():
        tree = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
        kubernetes_validate.validate(tree, "1.34", strict=True)


def test_the_job_brings_the_cluster_that_stays() -> None:
    (job,) = documents("rayjob")
    assert job["spec"]["rayClusterSpec"] == cluster_spec()


def test_its_nodes_hold_the_plan_of_the_config_that_it_is_for() -> None:
    plan = plan_placement(load_config(ROOT / "configs" / "janus_pro_7b_cluster.yaml"))
    limits = {name: pod["containers"][0]["resources"]["limits"] for name, pod in pods().items()}
    gpus = {name: int(limit.get("nvidia.com/gpu", 0)) for name, limit in limits.items()}
    assert sum(gpus[name] * group["maxReplicas"] for name, group in groups().items()) >= plan.num_gpus
    assert gpus["learner"] >= sum(bundle.gpus for bundle in plan.bundles if bundle.role == "learner")


def test_what_no_schema_holds_but_kuberays_controller_refuses() -> None:
    """`validation.go` of KubeRay: with the autoscaler v2 no pod may restart, resources and labels are fields and no
    parameters of `ray start`, and what Redis needs is said once."""
    spec = cluster_spec()
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert {pod.get("restartPolicy", "Never") for pod in pods().values()} == {"Never"}
    for group in groups().values():
        assert not {"labels", "resources"} & set(group["rayStartParams"])
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", group["groupName"])
    variables = {entry["name"] for pod in pods().values() for c in pod["containers"] for entry in c.get("env", [])}
    assert not variables & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_enable_autoscaler_v2"}


def test_nothing_of_the_run_is_on_the_head_and_only_rollout_is_spot() -> None:
    spec = cluster_spec()
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert documents("rayjob")[0]["spec"]["entrypointNumCpus"] == 1, "the launcher survives the head"
    spot = {name for name, pod in pods().items() if "spot" in json.dumps(pod).lower()}
    assert spot == {"rollout"}
    assert groups()["rollout"]["minReplicas"] == 0


def test_every_pod_sees_the_shared_folder_under_which_the_config_writes() -> None:
    config = load_config(ROOT / "configs" / "janus_pro_7b_cluster.yaml")
    for name, pod in pods().items():
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert "/mnt/shared" in mounts, name
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "emptyDir" not in v}
        assert claims[mounts["/mnt/shared"]] == documents("storage")[0]["metadata"]["name"]
    assert Path(config.run.dir).is_relative_to("/mnt/shared")


def test_nobody_gets_in_without_the_token() -> None:
    assert cluster_spec()["authOptions"] == {"mode": "token"}
