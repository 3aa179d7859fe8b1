"""Board and alerts as objects of Kubernetes, where an operator runs Prometheus and a sidecar feeds Grafana.

PrometheusRule: the Prometheus operator's kind for rule files. ConfigMap: the sidecar of Grafana's chart takes each file
of those that carry its label for a board.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from cluster.boards.alerts import rule_groups

RULES_LABELS: Final = {"release": "prometheus"}
"""As your Prometheus selects its rules; the default of the chart kube-prometheus-stack, installed as `prometheus`."""
BOARD_LABELS: Final = {"grafana_dashboard": "1"}
HEADER: Final = (
    "# Written by `make boards` from cluster/boards/; do not edit. With the Prometheus operator and the sidecar of\n"
    "# Grafana's chart: kubectl apply --server-side -f cluster/boards/kubernetes.yaml\n"
)


def kubernetes_yaml(board_name: str, board: str) -> str:
    """One file with both.

    Args:
        board_name: the name of the board's file, which Grafana's sidecar keeps.
        board: the board as JSON.
    """
    rules = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "bicot", "labels": RULES_LABELS},
        "spec": {"groups": rule_groups()},
    }
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "bicot-board", "labels": BOARD_LABELS},
        "data": {board_name: board},
    }
    return HEADER + yaml.dump_all((rules, config_map), Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks, so that a change of the board is a readable difference."""


def _text(dumper: yaml.SafeDumper, value: str) -> Any:
    is_long = value.count("\n") > 1
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if is_long else None)


_Dumper.add_representer(str, _text)
