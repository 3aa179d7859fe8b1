"""The one reader of picture files: what a reward scores and what a warm start trains on is the same picture.

    file ─► header checked ─► decoded ─► turned upright (EXIF) ─► uint8 [height, width, 3], RGB

What has no one meaning as an RGB picture (transparency, 16 bits, several frames) is refused and not guessed at; what is
another form of one (grey, palette, CMYK) is taken where it is asked for.
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
MAX_ASPECT = 100
"""Longer side over shorter: a reward that makes the shorter one 224 pixels would make the other 22,400."""
CONVERTED_MODES = ("1", "L", "P", "LA", "PA", "RGBA", "CMYK")
OPAQUE = 255
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow knows others, one of which runs a program (EPS)."""
# What Pillow's decoders are known to raise for damaged files, besides its own errors.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, MemoryError, RecursionError, struct.error, zlib.error),
)


def read_picture(path: Path, *, convert: bool = False) -> UInt8Array:
    """A picture file as uint8 [height, width, 3], RGB, turned upright as its EXIF data say.

    convert: take grey, black-and-white, palette and CMYK pictures, and those whose alpha is opaque throughout, as RGB.
    Raises ValueError, saying what is wrong: no picture, truncated or damaged, animated, too large or too long, or of
    other channels than RGB (what is behind a transparent picture, nobody knows).
    """
    from PIL import Image, ImageOps

    pixels, fault = None, ""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # a build of Pillow may lack some
    try:
        with Image.open(path, formats=formats) as image:
            fault = _fault_of(image, convert)
            if not fault:
                pixels = np.asarray(_as_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)
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


def _as_rgb(image: Image.Image) -> Image.Image:
    """Raises ValueError for a picture that one can see through."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != OPAQUE:
            raise ValueError("it is transparent in places; put it on a background first")
    return image if image.mode == "RGB" else image.convert("RGB")


def _fault_of(image: Image.Image, convert: bool) -> str:
    """What is wrong with an opened picture, by its header; empty if nothing is."""
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1:
        return f"has {num_frames} frames; only still pictures are read"
    if image.width * image.height > MAX_PIXELS:
        return f"has {image.width} x {image.height} pixels; at most {MAX_PIXELS} in all are read"
    if max(image.width, image.height) > MAX_ASPECT * min(image.width, image.height):
        return f"is {image.width} x {image.height} pixels: one side is more than {MAX_ASPECT} times the other"
    if image.mode != "RGB" and not (convert and image.mode in CONVERTED_MODES):
        how = "convert it" if image.mode in CONVERTED_MODES else "convert it to 8 bits a channel"
        return f"has channels {image.mode}, not RGB; {how} first"
    if "transparency" in image.info and not convert:
        return "has a transparent colour; convert it first"
    return ""


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ascii(reason)[1:-1] if not reason.isprintable() else reason
