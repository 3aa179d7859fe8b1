"""T2I-CompBench: attributes by BLIP-VQA, what is not spatial by CLIP."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.compbench.benchmark import CompBench as CompBench

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"benchmark": ["CompBench"]})
