"""Weights on their way: the buckets they travel in, and the manifest that each update is checked against."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rollout.weights.buckets import unpack_bucket as unpack_bucket
    from rollout.weights.manifest import WeightManifest as WeightManifest

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "buckets": ["unpack_bucket"],
        "manifest": ["WeightManifest"],
    },
)
