"""samples/….json: the pictures of a page of samples one by one, with all that is known of each, for report and page.

{"title": …, "entries": [{"picture": "data:image/webp;base64,…", "width" of the original in pixels, "prompt", "plan",
"score", "rewards", "explanation"}, …]}
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from cluster.reports.samples import SampleEntry
from rollout.records import UInt8Array

MAX_SIDE: Final = 384
"""Pixels; larger pictures are reduced."""
LOSSLESS_SIDE: Final = 128
"""Up to this, pixels can be seen one by one, and a lossless file is as small."""


def write_sample_file(path: Path, title: str, entries: Sequence[SampleEntry], **more: Any) -> None:
    """A reader sees the whole file or none. more: further keys of the file. Raises OSError."""
    tree = {"title": title, **more, "entries": [entry_tree(entry) for entry in entries]}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(tree, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def entry_tree(entry: SampleEntry) -> dict[str, Any]:
    """A sample as JSON has it; a score that is not finite is null."""
    return {
        "picture": data_uri(entry.picture),
        "width": entry.picture.shape[1],
        "prompt": entry.prompt,
        "plan": entry.plan,
        "score": entry.score if math.isfinite(entry.score) else None,
        "rewards": dict(entry.rewards),
        "explanation": entry.explanation,
    }


def data_uri(picture: UInt8Array) -> str:
    """uint8 [height, width, 3] as a WebP picture inside a text."""
    image = Image.fromarray(picture, "RGB")
    is_small = max(image.size) <= LOSSLESS_SIDE
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=is_small, quality=100 if is_small else 85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_sample_file(path: Path) -> Mapping[str, Any] | None:
    """None when there is none, or it is broken."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) and isinstance(tree.get("entries"), list) else None
