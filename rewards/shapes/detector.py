"""Finds the objects in decoded pictures of the shapes world, exactly, with NumPy and SciPy.

    pictures ─► label_pixels (ground, ink, eight colors) ─► connected components
      ─► each compared with all shapes at nine offsets (best IoU) ─► color by vote, texture by pattern

A whole batch goes through at once, but no step mixes pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rollout.records import UInt8Array
from rollout.shapes.world import (
    CELL_SIZE,
    CELLS,
    COLOR_RGB,
    COLORS,
    IMAGE_SIZE,
    INK,
    SHAPES,
    SPRITE_SIZE,
    TEXTURES,
    WHITE,
    draw_sprite,
    texture_mask,
)

GROUND, INKED, FIRST_COLOR = 0, 1, 2
"""Pixel labels; color i of COLORS is FIRST_COLOR + i."""
_NUM_LABELS = FIRST_COLOR + len(COLORS)
_PALETTE = np.array([WHITE, INK, *COLOR_RGB.values()], np.float32)
_MAX_GRAY_CHROMA = 40
"""Pixels whose channels differ by less are ground or ink, whatever color is nearest: anti-aliased ink is gray."""

MIN_AREA = 48
"""Components of fewer pixels are specks, not objects; the smallest shape has over 200."""
MIN_IOU = 0.6
"""Below this overlap with every shape, a component has none."""
_MIN_PURITY = 0.7
"""Share of an object's colored pixels that must agree on the color."""
_MIN_TEXTURE_AGREEMENT = 0.8
_MAX_VIVID_DISTANCE = 90
"""Farther than this from ink and from every color, in RGB, a pixel is washed out."""

_WINDOW = 32
_OFFSETS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))
_FOUR_NEIGHBOURS = np.zeros((3, 3, 3), bool)
_FOUR_NEIGHBOURS[1] = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True, slots=True)
class DetectedObject:
    """A connected piece of drawing; an attribute that cannot be told is None."""

    texture: str | None
    color: str | None
    shape: str | None
    iou: float
    """Overlap with the most similar shape, in [0, 1]."""
    vividness: float
    """Share of its pixels that are not washed out, in [0, 1]; above 0.6 in pictures as rendered."""
    row: float
    """Centre of mass, pixels from the top."""
    column: float
    area: int
    """Pixels."""

    def __str__(self) -> str:
        cell = 2 * int(self.row >= CELL_SIZE) + int(self.column >= CELL_SIZE)
        texture = "" if self.texture == "solid" else f"{self.texture or 'smudged'} "
        return f"{texture}{self.color or 'mixed'} {self.shape or 'blob'} {CELLS[cell]}"


@dataclass(frozen=True, slots=True)
class Drawing:
    """What one picture holds."""

    objects: tuple[DetectedObject, ...]
    """In order of their first pixels, top down."""
    speck_area: int
    """Pixels of drawing too small to be objects."""


def label_pixels(pictures: UInt8Array) -> NDArray[np.intp]:
    """Nearest label of each pixel: uint8 [..., 3] -> int [...]."""
    pixels = pictures.astype(np.float32)
    # |pixel - color|^2 without the term that all colors share.
    distances = (_PALETTE**2).sum(-1) - 2 * pixels @ _PALETTE.T
    labels = distances.argmin(-1)
    gray = np.ptp(pictures, axis=-1) < _MAX_GRAY_CHROMA
    return np.where(gray, np.where(pixels.mean(-1) < 128, INKED, GROUND), labels)


def detect_objects(pictures: UInt8Array) -> list[Drawing]:
    """What each of the pictures, uint8 [B, 64, 64, 3], holds."""
    if pictures.dtype != np.uint8 or pictures.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(
            f"pictures are {pictures.dtype} {list(pictures.shape)}, not uint8 [B, {IMAGE_SIZE}, {IMAGE_SIZE}, 3]"
        )
    labels = label_pixels(pictures)
    components, num_components = ndimage.label(labels != GROUND, structure=_FOUR_NEIGHBOURS)
    places = np.nonzero(components)
    owners = components[places] - 1
    areas = np.bincount(owners, minlength=num_components)
    # Row 0 of `centres` is the picture: a component lies in one, so that the mean of its index is the index.
    centres = np.stack([np.bincount(owners, axis, num_components) for axis in places]) / np.maximum(areas, 1)
    picture_of = centres[0].round().astype(np.intp)
    drawn_pixels = pictures[places].astype(np.float32)
    vivid = ((drawn_pixels - _PALETTE[labels[places]]) ** 2).sum(-1) < _MAX_VIVID_DISTANCE**2
    vividness = np.bincount(owners, vivid, num_components) / np.maximum(areas, 1)
    votes = np.bincount(owners * _NUM_LABELS + labels[places], minlength=num_components * _NUM_LABELS)

    kept = np.flatnonzero(areas >= MIN_AREA)
    small = areas < MIN_AREA
    speck_areas = np.bincount(picture_of[small], areas[small], len(pictures)).astype(int)
    objects = _describe_components(
        _cut_windows(kept, components, labels, picture_of[kept], centres[1:, kept]),
        votes.reshape(-1, _NUM_LABELS)[kept],
        areas[kept],
        vividness[kept],
        centres[1:, kept],
    )
    found: list[list[DetectedObject]] = [[] for _ in pictures]
    for index, item in zip(picture_of[kept], objects, strict=True):
        found[index].append(item)
    return [Drawing(tuple(items), int(specks)) for items, specks in zip(found, speck_areas, strict=True)]


def _describe_components(
    windows: tuple[NDArray[np.float32], NDArray[np.float32]],
    votes: NDArray[np.intp],
    areas: NDArray[np.intp],
    vividness: NDArray[np.float64],
    centres: NDArray[np.float64],
) -> list[DetectedObject]:
    """K components as objects.

    windows: from `_cut_windows`; votes: int [K, labels], how many pixels of each label a component
    has; areas: int [K]; vividness: float [K]; centres: float [2, K], row and column.
    """
    masks, inked = windows
    overlap = masks @ _TEMPLATES.T
    ious = overlap / (areas[:, None] + _TEMPLATES.sum(-1) - overlap)
    best = ious.argmax(-1)
    best_ious = ious.max(-1)

    # Within the overlap: the share of pixels that are inked where the texture is, and plain where it is not.
    common = masks * _TEMPLATES[best]
    agreements = (common[:, None] * (inked[:, None] == _TEXTURED[best])).sum(-1) / np.maximum(common.sum(-1), 1)[
        :, None
    ]
    color_votes = votes[:, FIRST_COLOR:]
    purities = color_votes.max(-1) / np.maximum(color_votes.sum(-1), 1)
    return [
        DetectedObject(
            texture=TEXTURES[agreements[k].argmax()] if agreements[k].max() >= _MIN_TEXTURE_AGREEMENT else None,
            color=COLORS[color_votes[k].argmax()] if purities[k] >= _MIN_PURITY else None,
            shape=SHAPES[best[k] // len(_OFFSETS)] if best_ious[k] >= MIN_IOU else None,
            iou=float(best_ious[k]),
            vividness=float(vividness[k]),
            row=float(centres[0, k]),
            column=float(centres[1, k]),
            area=int(areas[k]),
        )
        for k in range(len(areas))
    ]


def _cut_windows(
    kept: NDArray[np.intp],
    components: NDArray[np.int32],
    labels: NDArray[np.intp],
    picture_of: NDArray[np.intp],
    centres: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each component in a window around its centre, flattened: which pixels are its own, and which are inked.

    Both float32 [K, 1024]. What reaches beyond the window is cut off.
    """
    half = _WINDOW // 2
    margins = ((0, 0), (half, half), (half, half))
    reach = np.arange(_WINDOW)
    # The margin shifts everything by `half`, so a window that starts `half` before the centre starts at it.
    rows, columns = centres.round().astype(np.intp)[:, :, None] + reach
    index = (picture_of[:, None, None], rows[:, :, None], columns[:, None, :])
    own = np.pad(components, margins)[index] == kept[:, None, None] + 1
    ink = np.pad(labels, margins)[index] == INKED
    shape = (len(kept), _WINDOW * _WINDOW)
    return own.reshape(shape).astype(np.float32), ink.reshape(shape).astype(np.float32)


def _make_templates() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Every shape at every offset, and the ink that each texture would put on it.

    float32 [shapes * offsets, 1024] and [shapes * offsets, textures, 1024]; 1 where drawn, or inked.
    """
    silhouettes = np.zeros((len(SHAPES), len(_OFFSETS), _WINDOW, _WINDOW), np.float32)
    inks = np.zeros((len(SHAPES), len(_OFFSETS), len(TEXTURES), _WINDOW, _WINDOW), np.float32)
    patterns = np.stack([texture_mask(texture) for texture in TEXTURES])
    for s, shape in enumerate(SHAPES):
        drawn = np.mean([label_pixels(draw_sprite("solid", color, shape)) != GROUND for color in COLORS], axis=0) >= 0.5
        centre = np.argwhere(drawn).mean(0).round().astype(int)
        for o, offset in enumerate(_OFFSETS):
            top, left = _WINDOW // 2 - centre + offset
            place = (slice(top, top + SPRITE_SIZE), slice(left, left + SPRITE_SIZE))
            silhouettes[(s, o, *place)] = drawn
            inks[(s, o, slice(None), *place)] = patterns
    num = len(SHAPES) * len(_OFFSETS)
    return silhouettes.reshape(num, -1), inks.reshape(num, len(TEXTURES), -1)


_TEMPLATES, _TEXTURED = _make_templates()
