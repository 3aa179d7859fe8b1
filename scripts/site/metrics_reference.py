"""The metrics reference as Markdown, made from the tables that the code checks its own metrics against."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.reports.metrics import METRIC_PREFIXES, METRICS
from cluster.telemetry.series import FAMILIES, SERIES

INTRODUCTION = """\
# Metrics reference

`metrics.jsonl` in a run directory holds one JSON object a step with the keys below. A value that is not finite is
written as `null`. A key that stands in neither of the first two tables is refused when it is written, so these tables
are complete. Prometheus, Grafana and Ray's dashboard see the same numbers, and more: see [Prometheus](#prometheus).

This page is generated from `METRICS` and `SERIES` when the site is built.
"""

PROMETHEUS = """\
## Prometheus { #prometheus }

Ray's agent on each node exports these, as do its metrics in the Ray dashboard. Every series has the label `run` besides
those that are named. The launcher sets all its gauges again every few seconds, since Ray forgets a value 20 s after it
was set; counters and histograms stay. Of a counter only `rate()` and `increase()` mean something: they begin again when
a launcher does. Of a histogram use the buckets; Ray's `_sum` is made of the buckets' middles.

A key of a step is a gauge, too: `kl/cot` is `ray_bicot_kl_cot`. The others are:
"""


def metrics_reference() -> str:
    """The page's whole Markdown."""
    return "\n".join(
        [
            INTRODUCTION,
            '<div class="reference" markdown>',
            "",
            "## Keys of every step { #keys }",
            "",
            *_table(METRICS),
            "",
            "## Families of keys { #families }",
            "",
            "Their names depend on the config: on its rewards, its evaluation sets, its staleness.",
            "",
            *_table({f"{prefix}…": meaning for prefix, meaning in METRIC_PREFIXES.items()}),
            "",
            PROMETHEUS,
            *_series_table(),
            "",
            "Keys of a step whose names depend on the config become labels:",
            "",
            *_family_table(),
            "",
            "</div>",
            "",
        ]
    )


def _table(meanings: Mapping[str, str]) -> list[str]:
    rows = [f"| `{key}` | {meaning.replace('|', chr(92) + '|')} |" for key, meaning in meanings.items()]
    return ["| key | meaning |", "|---|---|", *rows]


def _series_table() -> list[str]:
    rows = [
        f"| `{series.exported}` | {series.kind} | {', '.join(f'`{label}`' for label in series.labels)} | "
        f"{series.meaning.replace('|', chr(92) + '|')} |"
        for series in SERIES
    ]
    return ["| series | kind | labels | meaning |", "|---|---|---|---|", *rows]


def _family_table() -> list[str]:
    rows = [
        f"| `{family.key}` | `ray_{family.name.format(suffix='…')}` | "
        f"{', '.join(f'`{label}`' for label in family.labels)} |"
        for family in FAMILIES
    ]
    return ["| key | series | labels |", "|---|---|---|", *rows]
