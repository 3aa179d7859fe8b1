"""Rewards with random weights: the real classes at their real widths, with few layers, and nothing downloaded."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.rehearsal.random_weights import has_random_weights as has_random_weights
    from rewards.rehearsal.random_weights import needs_weights as needs_weights
    from rewards.rehearsal.random_weights import with_random_weights as with_random_weights

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "random_weights": ["has_random_weights", "needs_weights", "with_random_weights"],
    },
)
