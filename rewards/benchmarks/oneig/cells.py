"""The cells of grids, as the official scripts see them: each as a JPEG, and none that is black.

files of one size ─► cells, black ones left out ─► JPEGs, read again ─► embedded together ─► compared by grid
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, Protocol

import numpy as np
from PIL import Image

from configs.errors import RewardError
from rewards.benchmarks.encoding import split_grid
from rewards.benchmarks.oneig.records import NUM_CELLS
from rewards.benchmarks.pictures import in_batches
from rewards.benchmarks.protocol import Answer, Asked, Item
from rollout.records import UInt8Array

QUALITY: Final = 75
"""Of the official script's JPEGs: a part of the protocol."""
NUM_FILES: Final = 8
"""Grids whose cells a model sees at once."""


class CellModel(Protocol):
    """What looks at cells."""

    found_as: str
    """What an answer calls what was found of a grid."""

    def embed(self, cells: UInt8Array) -> Sequence[Any]:
        """uint8 [B, height, width, 3] to one thing for each cell."""

    def compare(self, embedded: Sequence[Any], item: Item) -> list[Any]:
        """What is found of one grid, of which at least one cell was drawn; as JSON has it."""

    def about(self) -> Mapping[str, Any]:
        """Names and hashes of its weights."""


class CellScorer:
    """Shows the cells of several grids at once to a model."""

    def __init__(self, model: CellModel) -> None:
        self._model = model

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """{what the model found of the cells that are not black, "num_black": the others}."""
        for batch, grids in in_batches(asked, NUM_FILES):
            if isinstance(grids, RewardError):
                yield batch[0], grids
                continue
            drawn = [[np.asarray(Image.open(as_jpeg(cell))) for cell in drawn_cells(grid)] for grid in grids]
            cells = list(chain.from_iterable(drawn))
            embedded = self._model.embed(np.stack(cells)) if cells else ()
            start = 0
            for one, own in zip(batch, drawn, strict=True):
                found = self._model.compare(embedded[start : start + len(own)], one.item) if own else []
                start += len(own)
                yield one, {self._model.found_as: found, "num_black": NUM_CELLS - len(own)}

    def about(self) -> Mapping[str, Any]:
        """See `CellModel`."""
        return self._model.about()

    def close(self) -> None:
        """Its model goes with it."""


def as_jpeg(cell: UInt8Array) -> io.BytesIO:
    """A cell as the official scripts write it before they look at it."""
    file = io.BytesIO()
    Image.fromarray(cell).save(file, "JPEG", quality=QUALITY)
    return file


def drawn_cells(grid: UInt8Array) -> list[UInt8Array]:
    """The cells that are not black."""
    return [cell for cell in split_grid(grid) if cell.any()]
