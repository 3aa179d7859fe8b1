"""Checks and preprocessing of pictures, shared by every reward.

Rewards take pictures as uint8 [B, height, width, 3], RGB. Torch and Pillow are imported where they are
used, so that the worker of a plain NumPy reward needs neither.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout.records import Prompt, UInt8Array

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 2**26
"""Of a picture file: 8,192 x 8,192. Beyond it, a file is a mistake or an attack on the memory."""

MAX_ASPECT = 100
"""Longer side over shorter: a reward that makes the shorter one 224 pixels would make the other 22,400."""
CONVERTED_MODES = ("1", "L", "P", "LA", "PA", "RGBA", "CMYK")


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


def read_picture(path: Path, *, convert: bool = False) -> UInt8Array:
    """A picture file as uint8 [height, width, 3], RGB, turned upright as its EXIF data say.

    convert: take grey, black-and-white, palette and CMYK pictures, and those whose alpha is opaque throughout, as RGB.
    Raises ValueError, saying what is wrong: no picture, truncated or damaged, animated, too large or too long, or of
    other channels than RGB (what is behind a transparent picture, nobody knows).
    """
    from PIL import Image, ImageOps

    damage = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
    try:
        with Image.open(path) as image:
            fault = _fault_of(image, convert)
            upright = None if fault else ImageOps.exif_transpose(image)
            pixels = None if upright is None else np.asarray(_as_rgb(upright), dtype=np.uint8)
    except damage as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot be read as a picture: {reason}") from error
    if pixels is None:
        raise ValueError(fault)
    return pixels


def _as_rgb(image: Image.Image) -> Image.Image:
    """Raises ValueError for a picture that one can see through."""
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema()[0] != 255:
            raise ValueError("it is transparent in places; put it on a background first")
        return rgba.convert("RGB")
    return image.convert("RGB")


def _fault_of(image: Image.Image, convert: bool) -> str:
    """What is wrong with an opened picture, by its header; empty if nothing is."""
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1:
        return f"has {num_frames} frames; only still pictures are scored"
    if image.width * image.height > MAX_PIXELS:
        return f"has {image.width} x {image.height} pixels; at most {MAX_PIXELS} in all are read"
    if max(image.width, image.height) > MAX_ASPECT * min(image.width, image.height):
        return f"is {image.width} x {image.height} pixels: one side is more than {MAX_ASPECT} times the other"
    if image.mode != "RGB" and not (convert and image.mode in CONVERTED_MODES):
        how = "convert it (--convert)" if image.mode in CONVERTED_MODES else "convert it to 8 bits a channel"
        return f"has channels {image.mode}, not RGB; {how} first"
    return ""


def to_pil(pictures: UInt8Array) -> list[Image.Image]:
    """uint8 [B, height, width, 3] to B Pillow pictures in RGB."""
    from PIL import Image

    return [Image.fromarray(picture) for picture in pictures]


def pad_to_square(pictures: UInt8Array, gray: int) -> UInt8Array:
    """uint8 [B, height, width, 3] to [B, side, side, 3]: the pictures in the middle, even gray around."""
    height, width = pictures.shape[1:3]
    side = max(height, width)
    padding = [((side - length) // 2, side - length - (side - length) // 2) for length in (height, width)]
    return np.pad(pictures, [(0, 0), *padding, (0, 0)], constant_values=gray)
