"""ImageReward: how much people prefer a picture for a prompt (Xu et al. 2023, arXiv 2304.05977).

    picture ─► ViT-L/16 ─► patches ───────────────────┐ cross-attention
    prompt, at most 35 tokens ─► BERT, both directions ─► first token ─► head ─► (x - mean) / std

BLIP, fine-tuned on 137,000 expert comparisons. Normalised by the mean and spread of its training data, so that scores
lie about 0 with a spread of about 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import BlipTextModel, BlipVisionModel, CLIPImageProcessorPil

from rewards.loading import load_tokenizer, model_errors, resolve_dtype
from rewards.loading.blip import (
    convert_text,
    convert_vision,
    infer_text_config,
    infer_vision_config,
    split_by_prefix,
)
from rewards.loading.pretrained import fetch_file, fill_model, read_state_dict
from rewards.loading.score_head import build_head
from rewards.pictures import Preprocessing
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "THUDM/ImageReward/ImageReward.pt"
DEFAULT_TOKENIZER = "google-bert/bert-base-uncased"
MAX_TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the training data, as the authors give them."""
GPU_DTYPE = "tf32"
"""The scores of one group differ by about 1; what bfloat16 does to them has not been measured on a GPU."""


class ImageReward:
    """ImageReward of each picture.

    model: the authors' checkpoint file, local or on the hub as `owner/repo/file.pt`. tokenizer: hub id or folder of
    BERT's. Raises ModelError when either cannot be loaded.
    """

    def __init__(
        self, device: str, model: str = DEFAULT_MODEL, dtype: str = "auto", tokenizer: str = DEFAULT_TOKENIZER
    ) -> None:
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        with model_errors("image_reward", model):
            weights = read_state_dict(fetch_file(model))
            vision = convert_vision(split_by_prefix(weights, "blip.visual_encoder."))
            text = convert_text(split_by_prefix(weights, "blip.text_encoder."))
            self._vision = fill_model(BlipVisionModel, infer_vision_config(vision), vision, model, dtype, device)
            self._text = fill_model(
                BlipTextModel, infer_text_config(text), text, model, dtype, device, add_pooling_layer=False
            )
            self._head = build_head(weights, prefix="mlp.").to(self._vision.device)
        with model_errors("image_reward", tokenizer):
            self._tokenizer = load_tokenizer(tokenizer)
        size = self._vision.config.image_size
        # CLIP's preprocessing at this model's size.
        self._prepare = Preprocessing.of(
            CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        )

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Tensor:
        """Pixels as the model takes them, on its device: what can be done while the batch before is scored."""
        return self._prepare(pictures, self._vision.device)

    @torch.inference_mode()
    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: Tensor | None = None) -> list[Score]:
        """The normalised number for each picture; pictures uint8 [B, height, width, 3]."""
        pixels = self.prepare(pictures, prompts) if prepared is None else prepared
        patches = self._vision(pixel_values=pixels.to(self._vision.dtype)).last_hidden_state
        encoding = self._tokenizer(
            [prompt.text for prompt in prompts],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        hidden = self._text(
            input_ids=encoding.input_ids.to(self._vision.device),
            attention_mask=encoding.attention_mask.to(self._vision.device),
            encoder_hidden_states=patches,
            is_decoder=False,
        ).last_hidden_state
        raw = self._head(hidden[:, 0].float())[:, 0]
        return [Score(value) for value in ((raw - MEAN) / STD).tolist()]
