"""Benchmarks that a vision-language model on a server judges, by the questions of the official scripts."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.judged.echo4o import GenEvalPlusPlus as GenEvalPlusPlus
    from rewards.benchmarks.judged.echo4o import ImagineBench as ImagineBench
    from rewards.benchmarks.judged.wise import WiseLegacy as WiseLegacy
    from rewards.benchmarks.judged.wise import WiseVerified as WiseVerified

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"echo4o": ["GenEvalPlusPlus", "ImagineBench"], "wise": ["WiseLegacy", "WiseVerified"]},
)
