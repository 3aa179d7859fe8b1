"""The benchmarks of the field: their prompts, their official protocols, and what pictures score in them."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.protocol import Benchmark as Benchmark
    from rewards.benchmarks.registry import BENCHMARKS as BENCHMARKS
    from rewards.benchmarks.registry import make_benchmark as make_benchmark
    from rewards.benchmarks.registry import scorer_options as scorer_options

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"protocol": ["Benchmark"], "registry": ["BENCHMARKS", "make_benchmark", "scorer_options"]},
)
