"""What a panel of the board is made of, and the usual queries.

`$run`, `$SessionName` and `$Cluster` are the board's variables: the last two are those that Ray's dashboard passes.
A query that may have nothing to show on a healthy run, or on one without GPUs, says in `needs` what it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

RUN: Final = 'run=~"$run"'
NODE: Final = 'SessionName=~"$SessionName",ray_io_cluster=~"$Cluster"'
RATE: Final = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel."""

    expr: str
    """PromQL."""
    legend: str
    needs: str = ""
    """What a run must have for it to return anything; empty: every run has it."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel."""

    title: str
    meaning: str
    queries: tuple[Query, ...]
    unit: str = "short"
    """As Grafana names it."""
    kind: Literal["lines", "stacked", "stat", "states"] = "lines"
    width: int = 8
    """Of 24."""


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and what stands under it."""

    title: str
    panels: tuple[Panel, ...]


def gauge(name: str, legend: str, by: str = "", needs: str = "") -> Query:
    """A gauge of the launcher, one line a run. Ray adds labels of its own, which change when a launcher does."""
    labels = f"run, {by}" if by else "run"
    return Query(f"max by ({labels}) (ray_bicot_{name}{{{RUN}}})", legend, needs)


def rate(name: str, legend: str, by: str = "", needs: str = "") -> Query:
    """How fast a counter grows, a second."""
    labels = f"run, {by}" if by else "run"
    return Query(f"sum by ({labels}) (rate(ray_bicot_{name}_total{{{RUN}}}[{RATE}]))", legend, needs)


def quantile(share: float, name: str, legend: str) -> Query:
    """Of a histogram."""
    buckets = f"sum by (run, le) (rate(ray_bicot_{name}_bucket{{{RUN}}}[{RATE}]))"
    return Query(f"histogram_quantile({share}, {buckets})", legend)


def counted(name: str, legend: str, matchers: str = "") -> Query:
    """How often something happened in the last hour; 0 where Prometheus has never heard of it."""
    selected = f"{RUN},{matchers}" if matchers else RUN
    return Query(f"sum(increase(ray_bicot_{name}_total{{{selected}}}[1h])) or vector(0)", legend)
