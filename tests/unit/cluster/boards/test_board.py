"""The board: committed as the code makes it, with nothing in it that Grafana or the run does not know."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from cluster.boards.__main__ import BOARD_NAME, FOLDER
from cluster.boards.alerts import ALERTS
from cluster.boards.grafana import board_json
from cluster.boards.panels import ROWS
from cluster.boards.queries import Panel
from cluster.reports.metrics import METRICS
from cluster.telemetry.series import FAMILIES, SERIES, gauge_of

RAYS_OWN = {
    "ray_node_cpu_utilization",
    "ray_node_gpus_utilization",
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_object_store_memory",
}
REWARD_SUFFIXES = ("std_in_group", "no_spread", "at_min", "at_max", "perfect", "queue_ms", "batch_ms")


def panels() -> Iterator[Panel]:
    for row in ROWS:
        yield from row.panels


def known() -> set[str]:
    names = {f"ray_{gauge_of(key, frozenset(METRICS))[0]}" for key in METRICS} | RAYS_OWN
    for series in SERIES:
        names |= {f"{series.exported}_bucket"} if series.kind == "histogram" else {series.exported}
    for family in FAMILIES:
        names |= {f"ray_{family.name.format(suffix=suffix)}" for suffix in REWARD_SUFFIXES}
    return names


def test_the_committed_board_is_what_the_code_makes() -> None:
    assert (FOLDER / BOARD_NAME).read_text() == board_json(), "run `make boards`"


def test_every_series_of_a_panel_or_an_alert_is_one_that_a_run_or_ray_tells() -> None:
    expressions = [query.expr for panel in panels() for query in panel.queries] + [alert.expr for alert in ALERTS]
    used = {name for expr in expressions for name in re.findall(r"\bray_\w+", expr)} - {"ray_io_cluster"}
    assert used - known() == set()
    assert used >= RAYS_OWN


def test_every_query_looks_at_the_chosen_run_or_session() -> None:
    for panel in panels():
        for query in panel.queries:
            selectors = re.findall(r"\bray_\w+(\{[^}]*\})?", query.expr)
            assert all('run=~"$run"' in one or 'SessionName=~"$SessionName"' in one for one in selectors), query.expr


def test_the_board_has_no_key_that_grafana_does_not_know() -> None:
    """The SDK's models drop what they do not know, so a round trip shows it."""
    tree = json.loads(board_json())
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(tree)))
    assert set(missing(tree, again, "")) == set()


def missing(one: Any, other: Any, path: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key, value in one.items():
            if key not in other:
                yield f"{path}.{key}"
            else:
                yield from missing(value, other[key], f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from missing(left, right, f"{path}[{number}]")


def test_rays_dashboard_can_pass_its_variables_and_no_panel_lies_on_another() -> None:
    board = json.loads(board_json())
    assert {"datasource", "run", "SessionName", "Cluster"} == {v["name"] for v in board["templating"]["list"]}
    assert board["uid"] == "bicot"
    places = [panel["gridPos"] for panel in board["panels"]]
    taken = {(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
    assert len(taken) == sum(place["w"] * place["h"] for place in places)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
