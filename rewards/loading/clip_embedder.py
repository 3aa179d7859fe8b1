"""CLIP as two functions, pictures to embeddings and texts to embeddings, shared by the rewards that compare the two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from rewards.loading.pretrained import load_model, load_tokenizer, model_errors
from rewards.pictures import Preprocessing


class ClipEmbedder:
    """Unit embeddings of pictures and texts by one CLIP."""

    def __init__(self, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._clip, self._tokenizer = clip, tokenizer

    @property
    def device(self) -> torch.device:
        """Where its pixels have to be."""
        return self._clip.device

    @property
    def image_size(self) -> int:
        """Side in pixels of the squares that it takes."""
        return int(self._clip.config.vision_config.image_size)

    @property
    def scale(self) -> float:
        """exp(logit_scale), the factor of its cosines in training."""
        return float(self._clip.logit_scale.float().exp())

    def cosines(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosine of each picture's and its text's embedding, float32 [B]. The arguments are those of `embed`."""
        return cosines(*self.embed(pixels, texts))

    @torch.inference_mode()
    def embed(self, pixels: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit embeddings of pictures and of their texts, both float32 [B, e].

        pixels: float32 [B, 3, image_size, image_size], normalised as the model wants it.
        """
        pictures = self._clip.get_image_features(pixels.to(self._clip.device, self._clip.dtype)).pooler_output
        return normalize(pictures), self._embed_texts(texts)

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings, float32 [B, e]. The prompts of a group are one text, embedded once."""
        unique = list(dict.fromkeys(texts))
        # Right padding needs no mask: the text tower's attention is causal, and the first EOS is pooled.
        token_ids = self._tokenizer(
            unique,
            padding=True,
            truncation=True,
            max_length=self._clip.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).input_ids
        embedded = normalize(self._clip.get_text_features(token_ids.to(self._clip.device)).pooler_output)
        return embedded[[unique.index(text) for text in texts]]


def normalize(embedded: Tensor) -> Tensor:
    """In float32 whatever the model's dtype: in float16 the cosine moves in steps of 2.4e-4 and makes ties."""
    return functional.normalize(embedded.float(), dim=-1)


def cosines(pictures: Tensor, texts: Tensor) -> Tensor:
    """Cosine of each row of two [B, e] of unit length, float32 [B]."""
    return (pictures * texts).sum(dim=-1)


def load_clip(reward: str, model: str, processor: str, dtype: str, device: str) -> tuple[ClipEmbedder, Preprocessing]:
    """The CLIP of a hub id or folder, and how it wants pictures; `processor` holds that and the tokenizer.

    Raises ModelError, naming the reward.
    """
    with model_errors(reward, model):
        clip = load_model(CLIPModel, model, dtype, device)
    with model_errors(reward, processor):
        prepare = Preprocessing.of(CLIPImageProcessorPil.from_pretrained(processor))
        tokenizer = load_tokenizer(processor)
    return ClipEmbedder(clip, tokenizer), prepare
