"""T2I-CompBench: attributes by BLIP-VQA, actions by CLIP, places and numbers by UniDet."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.compbench.benchmark import CompBench as CompBench
    from rewards.benchmarks.compbench.plus import CompBenchPlusPlus as CompBenchPlusPlus

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"benchmark": ["CompBench"], "plus": ["CompBenchPlusPlus"]}
)
