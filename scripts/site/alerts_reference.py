"""The page of alerts as Markdown, made from the rules themselves."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.boards.alerts import ALERTS, Alert

INTRODUCTION = """\
# Alerts

The rules of `cluster/boards/alerts.yaml`, which Prometheus loads under `rule_files`; [Monitoring](../monitoring.md)
says how the metrics get there. Each rule is tried by promtool where it must fire and where it must not
(`tests/unit/cluster/boards/test_alerts.py`).

This page is generated from `cluster/boards/alerts.py` when the site is built.
"""


def alerts_reference() -> str:
    """The page's whole Markdown."""
    return "\n".join([INTRODUCTION, *(line for alert in ALERTS for line in _describe(alert))])


def _describe(alert: Alert) -> Iterator[str]:
    told = alert.summary.replace("{{ $labels.run }}", "RUN").replace("{{ $labels.pool }}", "POOL")
    start, _, rest = told.partition("{{ $value")
    told = f"{start}N{rest.partition('}}')[2]}" if rest else start
    yield from (f"## {alert.name} {{ #{alert.name.lower()} }}", "")
    wait = "" if alert.wait == "0m" else f", when it has been so for {alert.wait}"
    yield from (f"*{alert.severity.capitalize()}*{wait}: {told}.", "")
    yield from (f"**What to do.** {alert.remedy}", "")
    yield from ("```text", alert.expr, "```", "")
