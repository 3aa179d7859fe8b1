"""What `cluster.evaluate` consists of: a pool that draws benchmarks' prompts, and pools that score the pictures."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.evaluation.evaluation import Evaluation as Evaluation
    from cluster.evaluation.settings import drawing_of as drawing_of

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"evaluation": ["Evaluation"], "settings": ["drawing_of"]}
)
