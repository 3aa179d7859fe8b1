"""What Prometheus and Ray's dashboard see of a run: the table of its series, and their way out by Ray's metrics."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.telemetry.series import SERIES as SERIES
    from cluster.telemetry.series import Series as Series

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"series": ["SERIES", "Series"]})
