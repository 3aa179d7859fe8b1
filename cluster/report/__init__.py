"""report.html: one file that shows how runs went, for sending around; its sections are the live page's, too."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.report.page import report_html as report_html
    from cluster.report.page import write_report as write_report
    from cluster.report.view import RunView as RunView
    from cluster.report.view import read_run as read_run

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"page": ["report_html", "write_report"], "view": ["RunView", "read_run"]},
)
