"""The one reader of picture files: what a reward scores and what a warm start trains on is the same picture.

    file ─► header checked ─► decoded ─► turned upright (EXIF) ─► uint8 [height, width, 3], RGB

What has no one meaning as an RGB picture (transparency, 16 bits, several frames, CMYK) is refused and not guessed at.
Pillow is imported where it is used, so that the worker of a plain NumPy reward needs it not.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rollout.records import UInt8Array

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 2**26
"""Of a picture file: 8,192 x 8,192. Beyond it, a file is a mistake or an attack on the memory."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow knows others, one of which runs a program (EPS)."""
# What Pillow's decoders are known to raise for damaged files, besides its own errors.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, MemoryError, RecursionError, struct.error, zlib.error),
)


def read_picture(path: Path) -> UInt8Array:
    """A picture file as uint8 [height, width, 3], RGB, turned upright as its EXIF data say.

    Raises ValueError, saying what is wrong: no picture, truncated or damaged, animated, too large, or of other
    channels than RGB (what is behind a transparent picture, nobody knows).
    """
    from PIL import Image, ImageOps

    pixels, fault = None, ""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # a build of Pillow may lack some
    try:
        with Image.open(path, formats=formats) as image:
            fault = _fault_of(image)
            if not fault:
                pixels = np.asarray(ImageOps.exif_transpose(image), dtype=np.uint8)
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read as a picture: {_reason(error)}") from error
    if pixels is None:
        raise ValueError(fault)
    return pixels


def is_file(path: Path) -> bool:
    """Whether there is a file of this name; False, too, for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _fault_of(image: Image.Image) -> str:
    """What is wrong with an opened picture, by its header; empty if nothing is."""
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1:
        return f"has {num_frames} frames; only still pictures are read"
    if image.width * image.height > MAX_PIXELS:
        return f"has {image.width} x {image.height} pixels; at most {MAX_PIXELS} in all are read"
    if image.mode != "RGB":
        return f"has channels {image.mode}, not RGB; convert it first"
    if "transparency" in image.info:
        return "has a transparent colour; convert it first"
    return ""


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ascii(reason)[1:-1] if not reason.isprintable() else reason
