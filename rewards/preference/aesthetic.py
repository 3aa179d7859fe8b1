"""LAION's aesthetic predictor: how pleasing a picture is, whatever its prompt; about 1 to 10, mostly 4 to 7.

    picture ─► CLIP ViT-L/14 ─► unit embedding ─► head (rewards/loading/score_head.py) ─► score

The head was trained on ratings of photographs and generated pictures (SAC, LAION-Logos, AVA); the file is
`sac+logos+ava1-l14-linearMSE.pth` of christophschuhmann/improved-aesthetic-predictor, or a copy of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from rewards.loading import load_model, model_errors, resolve_dtype
from rewards.loading.clip_embedder import normalize
from rewards.loading.pretrained import fetch_file, read_state_dict
from rewards.loading.score_head import build_head
from rewards.pictures import Preprocessing
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "openai/clip-vit-large-patch14"
DEFAULT_HEAD = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"
GPU_DTYPE = "tf32"
"""As for the other CLIPs: the pictures of one group lie close together."""


class AestheticReward:
    """Aesthetic score of each picture; the prompt is not read.

    model: hub id or folder of a CLIP with its image processor. head: the predictor's .pth file, local or on the hub as
    `owner/repo/file.pth`. Raises ModelError when either cannot be loaded, or the two do not fit.
    """

    def __init__(self, device: str, model: str = DEFAULT_MODEL, dtype: str = "auto", head: str = DEFAULT_HEAD) -> None:
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        with model_errors("aesthetic", model):
            clip = load_model(CLIPVisionModelWithProjection, model, dtype, device)
            self._prepare = Preprocessing.of(CLIPImageProcessorPil.from_pretrained(model))
        self._clip: CLIPVisionModelWithProjection = clip
        with model_errors("aesthetic", head):
            self._head = build_head(read_state_dict(fetch_file(head)), prefix="").to(clip.device)
            width = self._head[0].in_features
            if width != clip.config.projection_dim:
                raise ValueError(f"it takes embeddings of {width}, {model} gives {clip.config.projection_dim}")

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Tensor:
        """Pixels as the model takes them, on its device: what can be done while the batch before is scored."""
        return self._prepare(pictures, self._clip.device)

    @torch.inference_mode()
    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: Tensor | None = None) -> list[Score]:
        """The head's number for each picture; pictures uint8 [B, height, width, 3]."""
        pixels = self.prepare(pictures, prompts) if prepared is None else prepared
        embedded = self._clip(pixel_values=pixels.to(self._clip.dtype)).image_embeds
        return [Score(value) for value in self._head(normalize(embedded))[:, 0].tolist()]
