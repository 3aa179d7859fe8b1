"""Pictures as Qwen2-VL, Qwen2.5-VL and Qwen3-VL take them: resized to whole tokens and cut into rows of patches.

[B, 3, height, width] ─► patches of `patch_size` squared, in blocks of `merge_size` squared that become one token,
                         each repeated over `temporal_patch_size` frames ─► [B x patches, 3 x frames x patch²]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
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

    def token_ids(self, config: Any) -> list[int]:
        """What stands for one picture between a prompt's tokens; config: of the whole model."""
        return [config.vision_start_token_id, *[config.image_token_id] * self.num_tokens, config.vision_end_token_id]

    def model_inputs(self, rows: Sequence[Tensor], model: Any) -> dict[str, Any]:
        """What the model is called with, on its device: rows of token ids, one a picture, padded on the left.

        rows: int64 [N_b] each, with `token_ids` in it once.
        """
        # The padding's id does not matter under the mask, as long as it is no picture's.
        token_ids = pad_sequence(list(rows), batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        return {
            "input_ids": token_ids.to(model.device),
            "attention_mask": mask.to(model.device),
            "mm_token_type_ids": (token_ids == model.config.image_token_id).int().to(model.device),
            "pixel_values": self.patches.to(model.dtype),
            "image_grid_thw": self.grid,
            "use_cache": False,
        }


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
