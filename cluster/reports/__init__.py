"""What a person sees of a run: metrics, progress on the screen, curves and sample pictures."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.reports.metrics import read_metrics as read_metrics
    from cluster.reports.progress import Progress as Progress
    from cluster.reports.run_log import RunLog as RunLog

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "metrics": ["read_metrics"],
        "progress": ["Progress"],
        "run_log": ["RunLog"],
    },
)
