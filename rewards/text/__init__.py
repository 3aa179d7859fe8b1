"""Rewards that read the words in a picture."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.text.ocr import OcrReward as OcrReward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ocr": ["OcrReward"],
    },
)
