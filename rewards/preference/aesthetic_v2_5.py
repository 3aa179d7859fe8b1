"""Aesthetic predictor v2.5: how pleasing a picture is, whatever its prompt; 1 to 10, from 5.5 on it is good.

    picture ─► SigLIP so400m, 384 pixels ─► unit pooled embedding ─► head (rewards/loading/score_head.py) ─► score

Made for illustrations and photographs alike. As a reward of small weight it guards against pictures that please all the
others and are ugly, the common end of a run that is being hacked. The head is `aesthetic_predictor_v2_5.pth` of
github.com/discus0434/aesthetic-predictor-v2-5, whose authors offer it there only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import SiglipImageProcessorPil, SiglipVisionModel

from rewards.loading import load_model, model_errors, resolve_dtype
from rewards.loading.clip_embedder import normalize
from rewards.loading.pretrained import fetch_file, read_state_dict
from rewards.loading.score_head import build_head
from rewards.pictures import Preprocessing
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "google/siglip-so400m-patch14-384"
HEAD_NAME, HEAD_NUMBERS = "scoring_head", (0, 2, 4, 6, 8)
GPU_DTYPE = "tf32"
"""The pictures of one group lie close together; its authors run it in bfloat16, which would be too coarse for that."""


class AestheticV25Reward:
    """Aesthetic score v2.5 of each picture; the prompt is not read.

    head: the predictor's .pth file, local or on the hub as `owner/repo/file.pth`. model: hub id or folder of a SigLIP
    with its image processor. Raises ModelError when either cannot be loaded, or the two do not fit.
    """

    def __init__(self, device: str, head: str, model: str = DEFAULT_MODEL, dtype: str = "auto") -> None:
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        with model_errors("aesthetic_v2_5", model):
            siglip = load_model(SiglipVisionModel, model, dtype, device)
            self._prepare = Preprocessing.of(SiglipImageProcessorPil.from_pretrained(model))
        self._siglip = siglip
        with model_errors("aesthetic_v2_5", head):
            weights = read_state_dict(fetch_file(head))
            self._head = build_head(weights, "", HEAD_NAME, HEAD_NUMBERS).to(siglip.device)
            width = self._head[0].in_features
            if width != siglip.config.hidden_size:
                raise ValueError(f"it takes embeddings of {width}, {model} gives {siglip.config.hidden_size}")

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Tensor:
        """Pixels as the model takes them, on its device: what can be done while the batch before is scored."""
        return self._prepare(pictures, self._siglip.device)

    @torch.inference_mode()
    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: Tensor | None = None) -> list[Score]:
        """The head's number for each picture; pictures uint8 [B, height, width, 3]."""
        pixels = self.prepare(pictures, prompts) if prepared is None else prepared
        embedded = self._siglip(pixel_values=pixels.to(self._siglip.dtype)).pooler_output
        return [Score(value) for value in self._head(normalize(embedded))[:, 0].tolist()]
