"""Device memory of the shipped rewards' default models, by their published numbers of parameters.

They are round numbers of known architectures, and activations are a guess of one batch: good to a gigabyte or so.
A reward that is not in the list, or is given another model, is said to be not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from configs.schema import RewardConfig

PARAMETERS: Final[Mapping[str, float]] = {
    "hps": 0.99e9,  # CLIP ViT-H/14
    "pick_score": 0.99e9,
    "clip_score": 0.15e9,  # CLIP ViT-B/32
    "aesthetic": 0.43e9,  # CLIP ViT-L/14
    "image_reward": 0.45e9,  # BLIP, ViT-L
    "git_vqa": 0.39e9,  # GIT-large
    "grounding_dino": 0.17e9,  # Swin-T
    "orm": 8.03e9,  # LLaVA-OneVision on Qwen2-7B
}
ALWAYS_BFLOAT16: Final = ("orm",)
ACTIVATION_BYTES: Final = 2**30
WITHOUT_A_MODEL: Final = ("shapes", "ocr", "open_nsfw", "vlm_judge", "unified_reward")
"""They use no device."""


def reward_bytes(reward: RewardConfig) -> int | None:
    """Of one replica's weights and activations; None when its model is not known."""
    if reward.name in WITHOUT_A_MODEL:
        return 0
    if reward.name not in PARAMETERS:
        return None
    narrow = reward.name in ALWAYS_BFLOAT16 or reward.options.get("dtype") == "bfloat16"
    return int(PARAMETERS[reward.name] * (2 if narrow else 4)) + ACTIVATION_BYTES
