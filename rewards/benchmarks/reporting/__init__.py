"""Results as people see them: on the screen, as a table beside published ones, as a page with the pictures."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.reporting.report import show_result as show_result
    from rewards.benchmarks.reporting.table import as_html as as_html
    from rewards.benchmarks.reporting.table import as_markdown as as_markdown

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"report": ["show_result"], "table": ["as_html", "as_markdown"]}
)
