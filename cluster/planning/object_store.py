"""How large the object store of a local Ray has to be: weights go through it, from the learner to the engines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cluster.planning.memory import trained_parameters
from cluster.planning.model_shape import ModelShape
from configs.schema import RunConfig

GIB: Final = 1 << 30
MARGIN_BYTES: Final = GIB
"""For pictures, batches and what Ray keeps beside: a step of the shapes world needs a few megabytes."""
VERSIONS: Final = 2
"""Of weights at once: the one that is delivered, and the next one, which is being exported."""
UNKNOWN_MODEL_SHARE: Final = 0.3
"""Of /dev/shm, for a model whose size is not known before it is downloaded; Ray's own default, of the memory."""
SHARE: Final = 0.9
"""Of /dev/shm at most: Ray takes no more."""
_DTYPE_BYTES: Final = {"float32": 4}
SHARED_MEMORY: Final = Path("/dev/shm")


def object_store_size(config: RunConfig) -> int:
    """Bytes: cluster.object_store_gib, or `2 x bytes of the weights that are sent + margin`.

    At most what /dev/shm has room for, but no less than the margin: Ray then keeps it in its folder on disk.
    """
    if config.cluster.object_store_gib is not None:
        return int(config.cluster.object_store_gib * GIB)
    room = int(shutil.disk_usage(SHARED_MEMORY).free * SHARE) if SHARED_MEMORY.is_dir() else 0
    weights = weight_bytes(config)
    wanted = int(room * UNKNOWN_MODEL_SHARE) if weights is None else VERSIONS * weights + MARGIN_BYTES
    return max(MARGIN_BYTES, min(wanted, room))


def weight_bytes(config: RunConfig) -> int | None:
    """Of one version of the weights; None for a hub id, whose config.json is not here yet."""
    path = Path(config.model.path).expanduser() / "config.json"
    if not path.is_file():
        return 0 if config.model.path == "tiny-janus" else None
    try:
        shape = ModelShape.of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # the learner will say what is wrong with it
    if config.learner.lora is not None:
        parameters = trained_parameters(config, shape)
    else:
        parameters = shape.trainable if set(config.learner.trainable) != {"*"} else shape.drawing
    return parameters * _DTYPE_BYTES.get(config.model.dtype, 2)


def shortage_on_nodes(config: RunConfig, sizes: Sequence[float]) -> str | None:
    """What to tell the user when weights will not fit into the object stores of a cluster's nodes, of these bytes."""
    weights = weight_bytes(config)
    if not weights or not sizes or min(sizes) >= (wanted := VERSIONS * weights):
        return None
    return (
        f"an object store of {min(sizes) / GIB:.1f} GiB is the smallest of the cluster's nodes, two versions of the "
        f"weights want {wanted / GIB:.1f}: the rest goes through the disk; `ray start "
        "--object-store-memory` enlarges it"
    )


def shortage(config: RunConfig) -> str | None:
    """What to tell the user when weights will not fit into shared memory."""
    weights = weight_bytes(config)
    if weights is None or config.cluster.object_store_gib is not None:
        return None
    wanted, size = VERSIONS * weights + MARGIN_BYTES, object_store_size(config)
    if wanted <= size:
        return None
    return (
        f"/dev/shm has room for an object store of {size / GIB:.1f} GiB, two versions of the weights want "
        f"{wanted / GIB:.1f}: the rest goes through the disk; enlarge it (docker: --shm-size), or set "
        "cluster.object_store_gib"
    )
