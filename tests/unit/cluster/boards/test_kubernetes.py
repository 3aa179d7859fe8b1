"""Board and alerts for Kubernetes: what Prometheus and Grafana get there is what was tested."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cluster.boards.__main__ import ALERTS_NAME, BOARD_NAME, FOLDER, KUBERNETES_NAME
from cluster.boards.grafana import board_json
from cluster.boards.kubernetes import kubernetes_yaml

COMMITTED = (FOLDER / KUBERNETES_NAME).read_text(encoding="utf-8")
LIMIT_BYTES = 1 << 20
"""Of a ConfigMap, by the API server."""


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    return {tree["kind"]: tree for tree in yaml.safe_load_all(COMMITTED)}


def test_the_committed_file_is_what_the_code_makes() -> None:
    assert kubernetes_yaml(BOARD_NAME, board_json()) == COMMITTED, "run `make boards`"


def test_its_rules_are_those_of_the_file_that_promtool_tests(objects: dict[str, dict[str, Any]]) -> None:
    rules = yaml.safe_load((FOLDER / ALERTS_NAME).read_text(encoding="utf-8"))
    assert objects["PrometheusRule"]["spec"] == rules


def test_its_board_is_the_one_that_is_imported_elsewhere(objects: dict[str, dict[str, Any]]) -> None:
    assert objects["ConfigMap"]["data"] == {BOARD_NAME: (FOLDER / BOARD_NAME).read_text(encoding="utf-8")}
    assert len(COMMITTED.encode()) < LIMIT_BYTES


def test_kubernetes_knows_every_field_of_the_config_map(objects: dict[str, dict[str, Any]]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (`dev`)")
    kubernetes_validate.validate(objects["ConfigMap"], "1.34", strict=True)
