"""DPG-Bench: dense prompts, a graph of questions for each, and mPLUG-large that answers them."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.dpg.benchmark import DPGBench as DPGBench

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"benchmark": ["DPGBench"]})
