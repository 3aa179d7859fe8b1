"""OneIG-Bench: how well pictures follow their prompts, and how well they write, by Qwen2.5-VL on a server."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.oneig.benchmark import OneIGBench as OneIGBench

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"benchmark": ["OneIGBench"]})
