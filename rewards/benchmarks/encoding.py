"""Drawn pictures as the official files of a benchmark: PNG, JPEG or WebP, alone or as a grid.

    drawn/KEY/0.png … ─► images/OFFICIAL PATH

A PNG of one picture is a link to what was drawn; JPEG is written at quality 95 without subsampling, since the judges'
scripts encode it again; WebP as Pillow writes it by default, which is OneIG's protocol.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from configs.errors import DataError
from rewards.benchmarks.protocol import Item
from rewards.pictures import read_picture
from rollout.records import UInt8Array

GRID_SIDE = 2
_OPTIONS = {".png": {}, ".jpg": {"quality": 95, "subsampling": 0}, ".webp": {}}


def encode_item(item: Item, drawn: list[Path], folder: Path) -> None:
    """Write the files of an item that are missing in `folder`, from its drawn pictures in their order."""
    for number, name in enumerate(item.files):
        target = folder / name
        if not target.exists():
            _encode(drawn[number * item.cells : (number + 1) * item.cells], target)
    for name, text in item.sidecars.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")


def _encode(drawn: list[Path], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if len(drawn) == 1 and target.suffix == ".png":
            _link(drawn[0], target)
            return
        picture = as_grid([read_picture(path) for path in drawn]) if len(drawn) > 1 else read_picture(drawn[0])
        write_picture(picture, target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error}") from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        write_picture(read_picture(source), target)


def write_picture(picture: UInt8Array, target: Path) -> None:
    """Write uint8 [height, width, 3] so that a file of that name is whole or not there. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    options = _OPTIONS[target.suffix]
    kind = Image.registered_extensions()[target.suffix]
    Image.fromarray(picture).save(unfinished, kind, **options)
    unfinished.replace(target)


def as_grid(pictures: list[UInt8Array]) -> UInt8Array:
    """Four pictures of one size as one: left to right, top to bottom."""
    rows = [np.concatenate(pictures[i : i + GRID_SIDE], axis=1) for i in range(0, len(pictures), GRID_SIDE)]
    return np.concatenate(rows, axis=0)


def split_grid(picture: UInt8Array) -> list[UInt8Array]:
    """The four cells of a grid, left to right, top to bottom; an odd pixel at the right and the bottom is left out."""
    height, width = (length // GRID_SIDE for length in picture.shape[:2])
    return [
        picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(GRID_SIDE)
        for column in range(GRID_SIDE)
    ]
