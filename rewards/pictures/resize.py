"""Resizing a batch of bytes as Pillow does it, picture by picture.

Pillow weights the pixels that a new one covers, in whole numbers of 2^-22, first along one direction and then along the
other, and rounds to bytes after each. Sums of such whole numbers are the same on every device, whatever the precision
of its matrix products: on a GPU this is done here, bit by bit, for the whole batch. (Pillow's filters: Keys, IEEE
Trans. ASSP 29, 1981, with a = -0.5, for bicubic.)

On a CPU bicubic is left to Pillow: torch's own rounds otherwise, by a gray level in a tenth of the pixels, and that
moves scores by more than batching may. Bilinear is torch's, four times as fast: enlarged, as GroundingDINO wants it, it
differs in one pixel of fifty, by a gray level, and only where neighbouring pixels differ as in noise.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rollout.records import UInt8Array

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
_REACH = {BILINEAR: 1.0, BICUBIC: 2.0}
"""Pixels on each side of a new one that count, where it is enlarged."""
_BITS = 22
_OPENCV_BITS = 11
Size = tuple[int, int]
"""Height, width."""
_Tables = tuple[Tensor, Tensor, Tensor, Tensor]


def resize(pixels: Tensor, size: Size, resample: Image.Resampling) -> Tensor:
    """uint8 [B, height, width, 3] to uint8 [B, *size, 3], on its device."""
    if tuple(pixels.shape[1:3]) == size:
        return pixels
    if pixels.device.type != "cpu":
        return resize_by_weights(pixels, size, resample)
    if resample == BICUBIC:
        return torch.from_numpy(resize_with_pillow(pixels.numpy(), size, resample))
    channels_first = pixels.permute(0, 3, 1, 2)
    resized = functional.interpolate(channels_first, size=size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)


def resize_with_pillow(pictures: UInt8Array, size: Size, resample: Image.Resampling) -> UInt8Array:
    """uint8 [B, height, width, 3] to uint8 [B, *size, 3]."""
    return np.stack([np.asarray(Image.fromarray(picture).resize(size[::-1], resample)) for picture in pictures])


def resize_by_weights(pixels: Tensor, size: Size, resample: Image.Resampling) -> Tensor:
    """uint8 [B, height, width, 3] to uint8 [B, *size, 3], on any device; the equal of Pillow.

    Along the direction first that leaves less to do, as Pillow does; where one grows and the other shrinks Pillow may
    begin with the other one, and roundings differ.
    """
    height, width = pixels.shape[1:3]
    down_first = size[0] * width < height * size[1]
    for dim in (1, 2) if down_first else (2, 1):
        if pixels.shape[dim] != size[dim - 1]:
            pixels = _weigh_along(pixels, dim, size[dim - 1], resample)
    return pixels


def _weigh_along(pixels: Tensor, dim: int, length: int, resample: Image.Resampling) -> Tensor:
    places, weights = (table.to(pixels.device) for table in _weight_tables(pixels.shape[dim], length, resample))
    shape = [1] * pixels.ndim
    shape[dim] = -1
    new_shape = list(pixels.shape)
    new_shape[dim] = length
    total = torch.full(new_shape, 1 << (_BITS - 1), dtype=torch.int32, device=pixels.device)
    for place, weight in zip(places, weights, strict=True):
        total += pixels.index_select(dim, place).int().mul_(weight.view(shape))
    return total.bitwise_right_shift_(_BITS).clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _weight_tables(old: int, new: int, resample: Image.Resampling) -> tuple[Tensor, Tensor]:
    """Pixels that a new one is made of, int64 [taps, new], and their weights in 2^-22, int32 [taps, new]."""
    scale = old / new
    widening = max(scale, 1.0)
    reach = _REACH[resample] * widening
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum(0, (centers - reach + 0.5).astype(np.int64))
    last = np.minimum(old, (centers + reach + 0.5).astype(np.int64))
    taps = np.arange(int((last - first).max()))[:, None]
    places = first + taps
    raw = _filter_value(np.abs(places - centers + 0.5) / widening, resample) * (places < last)
    weights = raw / raw.sum(axis=0) * (1 << _BITS)
    rounded = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32)
    return torch.from_numpy(np.minimum(places, old - 1)), torch.from_numpy(rounded)


def _filter_value(distance: np.ndarray, resample: Image.Resampling) -> np.ndarray:
    if resample == BILINEAR:
        return np.maximum(0, 1 - distance)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def resize_as_opencv(pixels: Tensor, size: Size) -> Tensor:
    """uint8 [B, height, width, 3] to uint8 [B, *size, 3], on any device: the equal of OpenCV's INTER_LINEAR on bytes.

    Of the four pixels around a new one, also where it is made smaller, with weights in 2^-11, along rows first.
    """
    if tuple(pixels.shape[1:3]) == size:
        return pixels
    across = _opencv_tables(pixels.shape[2], size[1], pixels.device)
    down = _opencv_tables(pixels.shape[1], size[0], pixels.device)
    # One picture after the other, so that its sums stay in the cache.
    return torch.stack([_resize_one_as_opencv(picture.int(), across, down) for picture in pixels])


def _resize_one_as_opencv(picture: Tensor, across: _Tables, down: _Tables) -> Tensor:
    """int32 [height, width, 3] to uint8, by the tables of its columns and of its rows."""
    height, width = picture.shape[:2]
    left, right, near, far = across
    # At the first and last column only the nearest pixel counts; at the first and last row it counts twice.
    outside = (left < 0) | (left >= width - 1)
    near, far = torch.where(outside, 1 << _OPENCV_BITS, near), torch.where(outside, 0, far)
    rows = picture.index_select(1, left.clamp(0, width - 1)).mul_(near[:, None])
    rows += picture.index_select(1, right.clamp(0, width - 1)).mul_(far[:, None])
    rows >>= 4
    top, bottom, near, far = down
    total = rows.index_select(0, top.clamp(0, height - 1)).mul_(near[:, None, None]).bitwise_right_shift_(16)
    total += rows.index_select(0, bottom.clamp(0, height - 1)).mul_(far[:, None, None]).bitwise_right_shift_(16)
    return total.add_(2).bitwise_right_shift_(2).clamp_(0, 255).to(torch.uint8)


def _opencv_tables(old: int, new: int, device: torch.device) -> _Tables:
    """The two pixels that a new one is made of, int64 [new], beyond the edges too, and their weights, int32 [new]."""
    places = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(places)
    fraction = places - first
    near, far = (np.rint(share * (1 << _OPENCV_BITS)).astype(np.int32) for share in (1 - fraction, fraction))
    before = torch.from_numpy(first.astype(np.int64)).to(device)
    return before, before + 1, torch.from_numpy(near).to(device), torch.from_numpy(far).to(device)
