"""The hub, asked once whether it is there: else each file would be tried five times, with longer and longer waits.

a hub id, and the hub does not answer ─► only what is in the cache, as with HF_HUB_OFFLINE=1
                                         ─► found, or at once an error that says so
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Final

from huggingface_hub import constants

REACH_S: Final = 5.0
"""For an answer of the hub's front page, of whatever kind."""


def is_local(model: str) -> bool:
    """Whether a model is named by a path of this machine."""
    return Path(model).exists() or Path(model).is_absolute() or model.startswith(("./", "../", "~"))


@lru_cache(maxsize=1)
def is_hub_reachable() -> bool:
    """Whether the hub answers; through a proxy where the environment names one. Asked once in a process."""
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=REACH_S):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except (OSError, http.client.HTTPException):
        return False


@contextmanager
def cache_alone_where_offline(model: str) -> Iterator[None]:
    """Within it, a hub that does not answer is not asked for files of this model."""
    if is_local(model) or constants.HF_HUB_OFFLINE or is_hub_reachable():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
