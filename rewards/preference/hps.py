"""HPSv2.1: how much people prefer a picture for a prompt (Wu et al. 2023, arXiv 2306.09341).

A CLIP ViT-H/14 fine-tuned on human choices. The score is the cosine of the picture's and the prompt's
embedding, about 0.2 to 0.35; within one group it spreads over about 0.01 only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel

from rewards.loading import ClipEmbedder, load_model, load_tokenizer, model_errors, resolve_dtype
from rewards.loading.clip_embedder import cosines
from rewards.loading.open_clip import clean_text, convert_state_dict, infer_config
from rewards.loading.pretrained import fetch_file, fill_model, read_state_dict
from rewards.t2i_r1.hps import half_cosines
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "xswu/HPSv2/HPS_v2.1_compressed.pt"
OPEN_CLIP_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Where the tokenizer comes from when the model is a checkpoint file, which holds none."""
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
GPU_DTYPE = "tf32"
"""The scores of one group differ by about 0.01: the 8 bits of bfloat16 would change their order."""


class HPSReward:
    """HPSv2.1 of each picture.

    model: an open_clip checkpoint file, local or on the hub as `owner/repo/file.pt`; or a folder or hub id of
    transformers' CLIPModel. tokenizer: hub id or folder; null is the model's own, or that of ViT-H/14 for a file.
    t2i_r1_compat: end in float16, as T2I-R1 does (rewards/t2i_r1/hps.py).
    Raises ModelError when either cannot be loaded.
    """

    def __init__(
        self,
        device: str,
        model: str = DEFAULT_MODEL,
        dtype: str = "auto",
        tokenizer: str | None = None,
        t2i_r1_compat: bool = False,
    ) -> None:
        self._cosines = half_cosines if t2i_r1_compat else cosines
        is_file = model.endswith(CHECKPOINT_SUFFIXES)
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        with model_errors("hps", model):
            clip = _load_open_clip(model, dtype, device) if is_file else load_model(CLIPModel, model, dtype, device)
        tokenizer = tokenizer or (OPEN_CLIP_TOKENIZER if is_file else model)
        with model_errors("hps", tokenizer):
            self._clip = ClipEmbedder(clip, load_tokenizer(tokenizer))

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Tensor:
        """Pixels as the model takes them, on its device: what can be done while the batch before is scored."""
        return preprocess(torch.tensor(pictures).to(self._clip.device), self._clip.image_size)

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: Tensor | None = None) -> list[Score]:
        """The cosine for each picture; pictures uint8 [B, height, width, 3]."""
        pixels = self.prepare(pictures, prompts) if prepared is None else prepared
        embedded = self._clip.embed(pixels, [clean_text(prompt.text) for prompt in prompts])
        return [Score(value) for value in self._cosines(*embedded).tolist()]


def preprocess(pictures: Tensor, size: int) -> Tensor:
    """As HPSv2's own: the longer side to `size` (bicubic, antialiased), zeros around, CLIP's normalisation.

    pictures: uint8 [B, height, width, 3]; returns float32 [B, 3, size, size]. Resizes floats, not pixels, so values may
    leave 0..1 a little; zeros are black before the normalisation.
    """
    pixels = pictures.permute(0, 3, 1, 2).float() / 255
    height, width = pixels.shape[2:]
    scale = size / max(height, width)
    if scale != 1:
        new_size = [max(1, round(height * scale)), max(1, round(width * scale))]
        pixels = functional.interpolate(pixels, size=new_size, mode="bicubic", antialias=True)
    pad_height, pad_width = size - pixels.shape[2], size - pixels.shape[3]
    left, top = pad_width // 2, pad_height // 2
    pixels = functional.pad(pixels, (left, pad_width - left, top, pad_height - top))
    mean, std = (torch.tensor(values).view(3, 1, 1).to(pixels.device) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def _load_open_clip(model: str, dtype: str, device: str) -> CLIPModel:
    weights = convert_state_dict(read_state_dict(fetch_file(model)))
    return fill_model(CLIPModel, infer_config(weights), weights, model, dtype, device)
