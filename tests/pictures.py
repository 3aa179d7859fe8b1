"""Pictures for the tests of rewards, and the preprocessing that several models share, worked out slowly."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rollout.records import UInt8Array

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_TILE = 10


def tiled_pictures(num_pictures: int, height: int = 40, width: int = 40) -> UInt8Array:
    """Pictures of coloured tiles, each another; uint8 [num_pictures, height, width, 3]."""
    shape = (num_pictures, height // _TILE, width // _TILE, 3)
    tiles = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return tiles.repeat(_TILE, axis=1).repeat(_TILE, axis=2)


def slow_clip_pixels(picture: UInt8Array, size: int) -> Tensor:
    """CLIP's preprocessing of one picture: shorter side to `size`, middle square, normalised; [3, size, size]."""
    scale = size / min(picture.shape[:2])
    height, width = (int(side * scale) for side in picture.shape[:2])
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    square = torch.tensor(np.array(resized)[top : top + size, left : left + size]).permute(2, 0, 1) / 255
    return (square - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
