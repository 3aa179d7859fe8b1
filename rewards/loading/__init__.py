"""Loads published weights, and converts their authors' formats to transformers' classes."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.loading.clip_embedder import ClipEmbedder as ClipEmbedder
    from rewards.loading.pretrained import load_model as load_model
    from rewards.loading.pretrained import load_tokenizer as load_tokenizer
    from rewards.loading.pretrained import model_errors as model_errors
    from rewards.loading.pretrained import resolve_dtype as resolve_dtype

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "clip_embedder": ["ClipEmbedder"],
        "pretrained": ["load_model", "load_tokenizer", "model_errors", "resolve_dtype"],
    },
)
