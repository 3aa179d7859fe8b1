"""Official files as batches of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from configs.errors import RewardError
from rewards.benchmarks.protocol import Asked
from rewards.pictures import read_picture
from rollout.records import UInt8Array


def in_batches(asked: Sequence[Asked], batch_size: int) -> Iterator[tuple[list[Asked], UInt8Array | RewardError]]:
    """Consecutive files of one size, at most `batch_size`, with their pictures, uint8 [B, height, width, 3].

    A file that is no picture comes alone, with the reason.
    """
    batch: list[Asked] = []
    pictures: list[UInt8Array] = []
    for one in asked:
        picture = open_picture(one)
        if isinstance(picture, RewardError):
            yield [one], picture
            continue
        if batch and (len(batch) == batch_size or picture.shape != pictures[0].shape):
            yield batch, np.stack(pictures)
            batch, pictures = [], []
        batch.append(one)
        pictures.append(picture)
    if batch:
        yield batch, np.stack(pictures)


def open_picture(one: Asked) -> UInt8Array | RewardError:
    """The picture of a file, uint8 [height, width, 3], or why there is none."""
    try:
        return read_picture(one.path, convert=True)
    except ValueError as error:
        return RewardError(f"{one.path.name}: {error}")
