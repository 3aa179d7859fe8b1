"""OneIG-Bench: how well pictures follow their prompts and write, have a style, and differ from each other."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.oneig.benchmark import OneIGBench as OneIGBench
    from rewards.benchmarks.oneig.diversity import OneIGDiversity as OneIGDiversity
    from rewards.benchmarks.oneig.style import OneIGStyle as OneIGStyle

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"benchmark": ["OneIGBench"], "diversity": ["OneIGDiversity"], "style": ["OneIGStyle"]},
)
