"""GenEval: prompts, detector, rules; and the same over the shapes world, whose truth is known."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.geneval.benchmark import GenEvalBenchmark as GenEvalBenchmark
    from rewards.benchmarks.geneval.shapes import ShapesBenchmark as ShapesBenchmark

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"benchmark": ["GenEvalBenchmark"], "shapes": ["ShapesBenchmark"]},
)
