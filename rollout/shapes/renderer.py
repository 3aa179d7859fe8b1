"""Draws plans of the shapes world with Pillow: 32x32 pixels, white ground, 2x2 cells.

A cell is 4x4 patches of 4 pixels. An object's box is 3x3 patches and shifts by whole patches in
its cell, and textures repeat every patch: so all pictures are made of some 570 distinct patches,
which a small VQ codebook can learn. A sprite leaves one pixel of its box free on each side, so that
two neighbours never touch.
"""

from __future__ import annotations

import functools
import math
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rollout.records import UInt8Array
from rollout.shapes.objects import COLORS, Plan

IMAGE_SIZE = 32
"""Height and width of a picture, pixels."""
PATCH_SIZE = 4
"""Height and width of what one image token stands for, pixels."""
CELL_SIZE = IMAGE_SIZE // 2
SPRITE_SIZE = 10
"""Height and width of an object, pixels."""

WHITE = (255, 255, 255)
INK = (0, 0, 0)
"""What stripes and dots are drawn with."""
COLOR_RGB = dict(
    zip(
        COLORS,
        ((225, 35, 35), (30, 170, 50), (40, 70, 230), (245, 210, 20), (160, 40, 190), (30, 200, 220)),
        strict=True,
    )
)

_SPRITE_MARGIN = (3 * PATCH_SIZE - SPRITE_SIZE) // 2
_OVERSAMPLING = 8


def render(plan: Plan, rng: random.Random) -> UInt8Array:
    """The plan as a picture, uint8 [32, 32, 3]; `rng` shifts each object by 0 or 1 patch down and right.

    Of two objects in one cell, the later is drawn over the earlier.
    """
    picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
    for item in plan:
        row, column = divmod(item.cell, 2)
        top = row * CELL_SIZE + rng.randint(0, 1) * PATCH_SIZE + _SPRITE_MARGIN
        left = column * CELL_SIZE + rng.randint(0, 1) * PATCH_SIZE + _SPRITE_MARGIN
        place = picture[top : top + SPRITE_SIZE, left : left + SPRITE_SIZE]
        # On a white ground the darker of the two is the drawn one, and anti-aliased edges stay right.
        np.minimum(place, draw_sprite(item.texture, item.color, item.shape), out=place)
    return picture


@functools.cache
def draw_sprite(texture: str, color: str, shape: str) -> UInt8Array:
    """One object on white ground, uint8 [10, 10, 3], anti-aliased. Cached: do not write into it."""
    alpha = _draw_outline(shape)[..., None]
    fill = np.where(texture_mask(texture)[..., None], np.array(INK), np.array(COLOR_RGB[color]))
    sprite: UInt8Array = np.rint(alpha * fill + (1 - alpha) * 255).astype(np.uint8)
    sprite.setflags(write=False)
    return sprite


def texture_mask(texture: str) -> NDArray[np.bool_]:
    """bool [10, 10]: where a sprite of that texture is inked. The pattern repeats every patch."""
    lower = (np.arange(SPRITE_SIZE) + _SPRITE_MARGIN) % PATCH_SIZE >= PATCH_SIZE // 2
    rows, columns = np.meshgrid(lower, lower, indexing="ij")
    if texture == "striped":
        return rows
    if texture == "dotted":
        return rows & columns
    return np.zeros_like(rows)


def _draw_outline(shape: str) -> NDArray[np.float32]:
    """How much of each pixel the shape covers, float32 [10, 10] in [0, 1]."""
    size = SPRITE_SIZE * _OVERSAMPLING
    end = size - 1
    canvas = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, end, end), fill=255)
    elif shape == "triangle":
        draw.polygon(((size / 2, 0), (end, end), (0, end)), fill=255)
    elif shape == "star":
        draw.polygon(_star_points(size), fill=255)
    elif shape == "cross":
        near, far = 0.34 * size, 0.66 * size
        draw.rectangle((near, 0, far, end), fill=255)
        draw.rectangle((0, near, end, far), fill=255)
    else:
        raise ValueError(f"no such shape: '{shape}'")
    small = canvas.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / np.float32(255)


def _star_points(size: int) -> list[tuple[float, float]]:
    """Ten corners of a five-pointed star that fills the square; x, y in pixels."""
    middle_x, middle_y = 0.5 * size, 0.54 * size
    points = []
    for corner in range(10):
        radius = (0.54 if corner % 2 == 0 else 0.22) * size
        angle = math.pi * corner / 5
        points.append((middle_x + radius * math.sin(angle), middle_y - radius * math.cos(angle)))
    return points
