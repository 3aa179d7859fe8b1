"""Pictures as rewards take them: checked, read from folders, resized."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.pictures.input import as_base64 as as_base64
    from rewards.pictures.input import check_pictures as check_pictures
    from rewards.pictures.input import read_picture as read_picture
    from rewards.pictures.input import to_pil as to_pil
    from rewards.pictures.pairs import match_pictures as match_pictures
    from rewards.pictures.preprocessing import Preprocessing as Preprocessing
    from rewards.pictures.qwen_patches import QwenPatches as QwenPatches

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "input": ["as_base64", "check_pictures", "read_picture", "to_pil"],
        "pairs": ["match_pictures"],
        "preprocessing": ["Preprocessing"],
        "qwen_patches": ["QwenPatches"],
    },
)
