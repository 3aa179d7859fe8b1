"""Draws plans of the shapes world with Pillow: 64x64 pixels, white ground, 2x2 cells.

A cell is 4x4 patches of 8 pixels. An object's box is 3x3 patches and shifts by whole patches in
its cell, and textures repeat every patch: so all pictures are made of some 1,100 distinct patches.
Every shape fills the middle patch of its box, and shows ground in the eight around it: the middle one
has the colour and the texture, the others have the outline (`learner.warm_start.patches`). A sprite
leaves one pixel of its box free on each side, so that two neighbours never touch.
"""

from __future__ import annotations

import functools
import math
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rollout.records import UInt8Array
from rollout.shapes.objects import Plan

IMAGE_SIZE = 64
"""Height and width of a picture, pixels."""
PATCH_SIZE = 8
"""Height and width of what one image token stands for, pixels."""
CELL_SIZE = IMAGE_SIZE // 2
SPRITE_SIZE = 22
"""Height and width of an object, pixels."""

WHITE = (255, 255, 255)
INK = (0, 0, 0)
"""What stripes and dots are drawn with."""
COLOR_RGB = {
    "red": (225, 35, 35),
    "orange": (250, 130, 20),
    "yellow": (250, 220, 30),
    "green": (30, 165, 50),
    "cyan": (30, 200, 225),
    "blue": (40, 70, 230),
    "purple": (160, 40, 190),
    "brown": (125, 70, 25),
}

_SPRITE_MARGIN = (3 * PATCH_SIZE - SPRITE_SIZE) // 2
_OVERSAMPLING = 8


def render(plan: Plan, rng: random.Random) -> UInt8Array:
    """The plan as a picture, uint8 [64, 64, 3]; `rng` shifts each object by 0 or 1 patch down and right.

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
    """One object on white ground, uint8 [22, 22, 3], anti-aliased. Cached: do not write into it."""
    alpha = _draw_outline(shape)[..., None]
    fill = np.where(texture_mask(texture)[..., None], np.array(INK), np.array(COLOR_RGB[color]))
    sprite: UInt8Array = np.rint(alpha * fill + (1 - alpha) * 255).astype(np.uint8)
    sprite.setflags(write=False)
    return sprite


def texture_mask(texture: str) -> NDArray[np.bool_]:
    """bool [22, 22]: where a sprite of that texture is inked. The pattern repeats every patch."""
    lower = (np.arange(SPRITE_SIZE) + _SPRITE_MARGIN) % PATCH_SIZE >= PATCH_SIZE // 2
    rows, columns = np.meshgrid(lower, lower, indexing="ij")
    if texture == "striped":
        return rows
    if texture == "dotted":
        return rows & columns
    return np.zeros_like(rows)


def _draw_outline(shape: str) -> NDArray[np.float32]:
    """How much of each pixel the shape covers, float32 [22, 22] in [0, 1]."""
    size = SPRITE_SIZE * _OVERSAMPLING
    end = size - 1
    canvas = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, end, end), fill=255)
    elif shape == "triangle":
        # Not quite a point: the middle patch is full.
        draw.polygon(((0.465 * size, 0), (0.535 * size, 0), (end, end), (0, end)), fill=255)
    elif shape == "star":
        draw.polygon(_star_points(size), fill=255)
    elif shape == "cross":
        near, far = 0.3 * size, 0.7 * size
        draw.rectangle((near, 0, far, end), fill=255)
        draw.rectangle((0, near, end, far), fill=255)
    elif shape == "diamond":
        draw.polygon(((size / 2, 0), (end, size / 2), (size / 2, end), (0, size / 2)), fill=255)
    elif shape == "heart":
        draw.ellipse((0, 0, 0.54 * size, 0.56 * size), fill=255)
        draw.ellipse((0.46 * size, 0, end, 0.56 * size), fill=255)
        draw.polygon(
            ((0.04 * size, 0.4 * size), (0.5 * size, 0.2 * size), (0.96 * size, 0.4 * size), (size / 2, end)), fill=255
        )
    elif shape == "arrow":
        draw.polygon(((size / 2, 0), (end, 0.45 * size), (0, 0.45 * size)), fill=255)
        draw.rectangle((0.3 * size, 0.4 * size, 0.7 * size, end), fill=255)
    else:
        raise ValueError(f"no such shape: '{shape}'")
    small = canvas.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / np.float32(255)


def _star_points(size: int) -> list[tuple[float, float]]:
    """Ten corners of a five-pointed star that fills the square; x, y in pixels."""
    middle_x, middle_y = 0.5 * size, 0.52 * size
    points = []
    for corner in range(10):
        radius = (0.54 if corner % 2 == 0 else 0.29) * size
        angle = math.pi * corner / 5
        points.append((middle_x + radius * math.sin(angle), middle_y - radius * math.cos(angle)))
    return points
