"""UniDet, the detector of 722 classes that T2I-CompBench counts and places objects with."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.objects.unidet.detector import Found as Found
    from rewards.objects.unidet.detector import UniDet as UniDet
    from rewards.objects.unidet.detector import load_unidet as load_unidet

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"detector": ["Found", "UniDet", "load_unidet"]}
)
