"""OneIG-Bench: how well pictures follow their prompts, how well they write, and whether they have its style."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.oneig.benchmark import OneIGBench as OneIGBench
    from rewards.benchmarks.oneig.style import OneIGStyle as OneIGStyle

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"benchmark": ["OneIGBench"], "style": ["OneIGStyle"]}
)
