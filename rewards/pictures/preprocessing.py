"""Resizing and normalising a batch of pictures at once, on the device that the model is on.

    uint8 [B, height, width, 3] ─► device ─► resize ─► middle crop ─► (x / 255 - mean) / std ─► float32

What crosses to a GPU is bytes: 0.44 MB of a picture of 384 pixels, where its 800 x 800 floats are 7.7 MB. The result is
that of transformers' own processors, which take one picture after the other through Pillow and NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_transforms import get_size_with_aspect_ratio

from rewards.pictures.resize import BICUBIC, BILINEAR, Size, resize
from rollout.records import UInt8Array

MAX_ASPECT = 4
"""Where only the middle square is seen, the long side is cut to so many short ones before it is resized: else a
picture of 1 x 3,000 pixels becomes one of 224 x 672,000 first."""


def crop_middle(pixels: Tensor, size: Size) -> Tensor:
    """[B, height, width, 3] to its middle [B, *size, 3]. Raises ValueError when it is smaller than that."""
    height, width = pixels.shape[1:3]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    if min(top, left) < 0:
        raise ValueError(f"pictures of {height} x {width} have no middle of {size[0]} x {size[1]}")
    return pixels[:, top : top + size[0], left : left + size[1]]


def normalize_pixels(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, height, width, 3] to float32 [B, 3, height, width], (x / 255 - mean) / std by channel.

    In memory the channels stay last, as they come and as convolutions like them: to turn them costs more than all else.
    """
    num_pictures, height, width, channels = pixels.shape
    # Whole rows at once: three values in turn are no vector.
    row_mean, row_std = (
        (torch.tensor(values, dtype=torch.float32) * 255).repeat(width).to(pixels.device) for values in (mean, std)
    )
    rows = pixels.reshape(num_pictures, height, width * channels)
    if pixels.device.type == "cpu":
        # NumPy asks the system for huge pages, torch does not: half of the time goes into faults of small ones.
        normalized = torch.from_numpy(np.empty(tuple(rows.shape), dtype=np.float32))
    else:
        normalized = torch.empty(rows.shape, dtype=torch.float32, device=pixels.device)
    # One picture after the other, so that its floats are still in the cache at the next step.
    for given, result in zip(rows, normalized, strict=True):
        result.copy_(given).sub_(row_mean).div_(row_std)
    return normalized.view(pixels.shape).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a model wants its pictures to look like."""

    size_of: Callable[[int, int], Size]
    """Height and width of a picture to what it is resized to."""
    resample: Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: Size | None = None
    """The middle that is seen of it; null for all."""

    @classmethod
    def of(cls, processor: Any) -> Preprocessing:
        """That of a transformers image processor. Raises ValueError for one that does something else.

        Its `size` is a height and a width; or a shortest edge, with or without a longest one.
        """
        size = {key: value for key, value in dict(processor.size).items() if value is not None}
        skipped = [step for step in ("do_resize", "do_rescale", "do_normalize") if not getattr(processor, step, True)]
        if skipped:
            raise ValueError(f"its image processor does without {', '.join(skipped)}; that is not supported")
        if processor.resample not in (BILINEAR, BICUBIC):
            raise ValueError(
                f"its image processor has resample {processor.resample}; bilinear and bicubic are supported"
            )
        cropped = getattr(processor, "do_center_crop", False)
        return cls(
            size_of=_sizing(size),
            resample=Image.Resampling(processor.resample),
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            crop=(processor.crop_size["height"], processor.crop_size["width"]) if cropped else None,
        )

    def __call__(self, pictures: UInt8Array, device: torch.device | str) -> Tensor:
        """uint8 [B, height, width, 3] to float32 [B, 3, new height, new width] on the device."""
        return normalize_pixels(self.resized(pictures, device), self.mean, self.std)

    def resized(self, pictures: UInt8Array, device: torch.device | str) -> Tensor:
        """uint8 [B, height, width, 3] to uint8 [B, new height, new width, 3] on the device, resized and cropped."""
        pixels = torch.tensor(np.ascontiguousarray(pictures)).to(device)
        if self.crop is not None:
            height, width = pixels.shape[1:3]
            longest = MAX_ASPECT * min(height, width)
            pixels = crop_middle(pixels, (min(height, longest), min(width, longest)))
        pixels = resize(pixels, self.size_of(*pixels.shape[1:3]), self.resample)
        return pixels if self.crop is None else crop_middle(pixels, self.crop)


def _sizing(size: dict[str, int]) -> Callable[[int, int], Size]:
    if set(size) == {"height", "width"}:
        fixed = (size["height"], size["width"])
        return lambda height, width: fixed
    if "shortest_edge" not in size or not set(size) <= {"shortest_edge", "longest_edge"}:
        raise ValueError(f"its image processor has a size of {size}; height and width, or shortest_edge, are supported")

    def by_edges(height: int, width: int) -> Size:
        found = get_size_with_aspect_ratio((height, width), size["shortest_edge"], size.get("longest_edge"))
        if min(found) < 1:
            raise ValueError(f"a picture of {height} x {width} pixels is too narrow to be resized to {size}")
        return found

    return by_edges
