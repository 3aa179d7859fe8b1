"""What a user can check of an installation before believing its numbers."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.benchmarks.checking.checks import self_check as self_check

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"checks": ["self_check"]})
