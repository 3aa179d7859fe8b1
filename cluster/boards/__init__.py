"""The Grafana board and the Prometheus alerts of a run: panels and rules as data, and what writes them as files."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.boards.alerts import ALERTS as ALERTS
    from cluster.boards.panels import ROWS as ROWS

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"alerts": ["ALERTS"], "panels": ["ROWS"]})
