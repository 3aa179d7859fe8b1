"""Checks and preprocessing of pictures, shared by every reward.

Rewards take pictures as uint8 [B, height, width, 3], RGB. Torch and Pillow are imported where they are
used, so that the worker of a plain NumPy reward needs neither.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout.pictures.reader import MAX_PIXELS as MAX_PIXELS
from rollout.pictures.reader import read_picture as read_picture
from rollout.records import Prompt, UInt8Array

if TYPE_CHECKING:
    from PIL import Image


def check_pictures(pictures: Any, prompts: Sequence[Prompt]) -> None:
    """Raise ValueError unless `pictures` is uint8 [B, height, width, 3] with one prompt a picture."""
    if not isinstance(pictures, np.ndarray):
        raise ValueError(f"pictures must be a NumPy array, not {type(pictures).__name__}")
    if pictures.dtype != np.uint8:
        nan = " with NaN in them" if pictures.dtype.kind == "f" and np.isnan(pictures).any() else ""
        raise ValueError(f"pictures must be uint8 (0 to 255), not {pictures.dtype}{nan}; round and convert them first")
    if pictures.ndim != 4:
        raise ValueError(f"pictures must be [B, height, width, 3], not of shape {pictures.shape}")
    if pictures.shape[3] != 3:
        raise ValueError(f"pictures must have 3 channels (RGB), not {pictures.shape[3]} (shape {pictures.shape})")
    if len(pictures) and 0 in pictures.shape:
        raise ValueError(f"pictures are empty: shape {pictures.shape}")
    if len(pictures) != len(prompts):
        raise ValueError(f"{len(pictures)} pictures came with {len(prompts)} prompts; give one prompt a picture")


def to_pil(pictures: UInt8Array) -> list[Image.Image]:
    """uint8 [B, height, width, 3] to B Pillow pictures in RGB."""
    from PIL import Image

    return [Image.fromarray(picture) for picture in pictures]


def as_base64(picture: UInt8Array, image_format: str, **settings: Any) -> str:
    """uint8 [height, width, 3] as a file in base64, as servers take it; the settings are those of Pillow's writer."""
    from PIL import Image

    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, format=image_format, **settings)
        return base64.b64encode(file.getvalue()).decode()


def pad_to_square(pictures: UInt8Array, gray: int) -> UInt8Array:
    """uint8 [B, height, width, 3] to [B, side, side, 3]: the pictures in the middle, even gray around."""
    height, width = pictures.shape[1:3]
    side = max(height, width)
    padding = [((side - length) // 2, side - length - (side - length) // 2) for length in (height, width)]
    return np.pad(pictures, [(0, 0), *padding, (0, 0)], constant_values=gray)
