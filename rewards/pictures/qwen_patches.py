"""Pictures as Qwen2-VL, Qwen2.5-VL and Qwen3-VL take them: resized to whole tokens and cut into rows of patches.

[B, 3, height, width] ─► patches of `patch_size` squared, in blocks of `merge_size` squared that become one token,
                         each repeated over `temporal_patch_size` frames ─► [B x patches, 3 x frames x patch²]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from rewards.pictures.preprocessing import Preprocessing
from rollout.records import UInt8Array


@dataclass(frozen=True, slots=True)
class SeenPictures:
    """What a Qwen vision tower is given of B pictures of one size."""

    patches: Tensor
    """float32 [B x patches, values], picture by picture."""
    grid: Tensor
    """int64 [B, 3]: frames (1), rows and columns of patches of each picture."""
    num_tokens: int
    """Of one picture, after its patches are merged."""


class QwenPatches:
    """Prepares pictures as a folder's Qwen2VLImageProcessor says. Raises ValueError for one that does otherwise."""

    def __init__(self, processor: Any) -> None:
        self._patch, self._merge = int(processor.patch_size), int(processor.merge_size)
        self._frames = int(processor.temporal_patch_size)
        least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
        unchecked = Preprocessing.of(processor)
        sizing = partial(smart_resize, factor=self._patch * self._merge, min_pixels=least, max_pixels=most)
        self._prepare = Preprocessing(sizing, unchecked.resample, unchecked.mean, unchecked.std)

    def __call__(self, pictures: UInt8Array, device: torch.device | str) -> SeenPictures:
        """uint8 [B, height, width, 3] to patches on the device."""
        pixels = self._prepare(pictures, device)
        num_pictures, channels, height, width = pixels.shape
        rows, columns = height // self._patch, width // self._patch
        blocks = pixels.reshape(
            num_pictures,
            channels,
            rows // self._merge,
            self._merge,
            self._patch,
            columns // self._merge,
            self._merge,
            self._patch,
        )
        # Picture, block row, block column, row and column within it, channel, pixels: a still picture fills all frames.
        patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        patches = patches.expand(*patches.shape[:6], self._frames, *patches.shape[7:])
        return SeenPictures(
            patches=patches.reshape(num_pictures * rows * columns, -1),
            grid=torch.tensor([[1, rows, columns]] * num_pictures, device=device),
            num_tokens=rows * columns // self._merge**2,
        )
