"""Sample pictures as pages: pictures in a grid, and pairs from before and after, with their texts."""

from cluster.reports.samples.page import SampleEntry as SampleEntry
from cluster.reports.samples.page import draw_before_after as draw_before_after
from cluster.reports.samples.page import draw_samples as draw_samples

__all__ = ["SampleEntry", "draw_before_after", "draw_samples"]
