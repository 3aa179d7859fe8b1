"""Janus checkpoints in their authors' own format, read into transformers' format and written back."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rollout.conversion.to_hugging_face import convert_to_hugging_face as convert_to_hugging_face
    from rollout.conversion.to_original import convert_to_original as convert_to_original

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "to_hugging_face": ["convert_to_hugging_face"],
        "to_original": ["convert_to_original"],
    },
)
