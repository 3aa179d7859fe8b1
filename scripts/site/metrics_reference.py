"""The metrics reference as Markdown, made from the tables that the code checks its own metrics against."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.reports.metrics import METRIC_PREFIXES, METRICS

INTRODUCTION = """\
# Metrics reference

`metrics.jsonl` in a run directory holds one JSON object a step with the keys below. A value that is not finite is
written as `null`. Ray's own metrics carry the same numbers as `bicot_…`, so the Ray dashboard and Prometheus show them.
A key that stands in neither table is refused when it is written, so these tables are complete.

This page is generated from `METRICS` when the site is built.
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
            "</div>",
            "",
        ]
    )


def _table(meanings: Mapping[str, str]) -> list[str]:
    rows = [f"| `{key}` | {meaning.replace('|', chr(92) + '|')} |" for key, meaning in meanings.items()]
    return ["| key | meaning |", "|---|---|", *rows]
