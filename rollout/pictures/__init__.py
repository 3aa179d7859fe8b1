"""From VQ codes to uint8 pictures, and from pictures to files."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rollout.pictures.batched_decoder import BatchedDecoder as BatchedDecoder
    from rollout.pictures.decoder import ImageDecoder as ImageDecoder
    from rollout.pictures.writer import PictureWriter as PictureWriter

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batched_decoder": ["BatchedDecoder"],
        "decoder": ["ImageDecoder"],
        "writer": ["PictureWriter"],
    },
)
