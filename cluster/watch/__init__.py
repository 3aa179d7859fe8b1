"""A page that shows runs in a browser while they go on: read-only, from their directories or over Redis."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.watch.server import Watched as Watched
    from cluster.watch.server import serve as serve

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"server": ["Watched", "serve"]})
