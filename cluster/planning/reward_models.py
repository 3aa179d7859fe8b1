"""Device memory of the shipped rewards' default models, by their published numbers of parameters.

They are round numbers of known architectures, and activations are a guess of one batch: good to a gigabyte or so.
Another model under `options.model` is taken to be as large as the default one, being mostly a copy of it. A reward that
is not in the list is said to be not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from configs.schema import RewardConfig

PARAMETERS: Final[Mapping[str, float]] = {
    "hps": 0.99e9,  # CLIP ViT-H/14
    "hpsv3": 8.29e9,  # Qwen2-VL-7B
    "pick_score": 0.99e9,
    "clip_score": 0.15e9,  # CLIP ViT-B/32
    "aesthetic": 0.43e9,  # CLIP ViT-L/14
    "aesthetic_v2_5": 0.43e9,  # SigLIP so400m
    "image_reward": 0.45e9,  # BLIP, ViT-L
    "git_vqa": 0.39e9,  # GIT-large
    "grounding_dino": 0.17e9,  # Swin-T
    "geneval": 0.50e9,  # Mask2Former Swin-S and CLIP ViT-L/14
    "orm": 8.03e9,  # LLaVA-OneVision on Qwen2-7B
    "vqa_score": 8.29e9,  # Qwen2.5-VL-7B
    "nsfw": 0.09e9,  # ViT-B/16
}
BFLOAT16_ON_A_GPU: Final = ("hpsv3", "orm", "vqa_score")
"""With `dtype: auto`; the others are in float32. Their modules' GPU_DTYPE says the same, and why."""
ACTIVATION_BYTES: Final = 2**30
WITHOUT_A_MODEL: Final = ("shapes", "ocr", "open_nsfw", "vlm_judge", "logprob_judge", "unified_reward", "http")
"""They use no device."""
_NARROW: Final = ("bfloat16", "float16")


def reward_dtype(reward: RewardConfig) -> str:
    """What its model is held in on a GPU: bfloat16, float16 or float32."""
    dtype = str(reward.options.get("dtype", "auto"))
    if dtype == "auto":
        return "bfloat16" if reward.implementation in BFLOAT16_ON_A_GPU else "float32"
    return dtype if dtype in _NARROW else "float32"


def reward_bytes(reward: RewardConfig) -> int | None:
    """Of one replica's weights and activations; None when its model is not known."""
    if reward.implementation in WITHOUT_A_MODEL:
        return 0
    if reward.implementation not in PARAMETERS:
        return None
    bytes_per_value = 2 if reward_dtype(reward) in _NARROW else 4
    return int(PARAMETERS[reward.implementation] * bytes_per_value) + ACTIVATION_BYTES
