"""Invented records of GenEval, and a tiny detector and CLIP for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rewards.objects.coco import CLASS_NAMES
from tests.tiny_clip import save_tiny_clip
from tests.unit.rewards.objects.mmdet_names import as_mmdet, tiny_detector

KITE, OVEN = {"class": "kite", "count": 1}, {"class": "oven", "count": 1}
RECORDS: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [KITE], "prompt": "a photo of a kite"},
    {"tag": "two_object", "include": [KITE, OVEN], "prompt": "a photo of a kite and an oven"},
    {
        "tag": "counting",
        "include": [{"class": "spoon", "count": 3}],
        "exclude": [{"class": "spoon", "count": 4}],
        "prompt": "a photo of three spoons",
    },
    {"tag": "colors", "include": [KITE | {"color": "red"}], "prompt": "a photo of a red kite"},
    {
        "tag": "position",
        "include": [KITE, OVEN | {"position": ["left of", 0]}],
        "prompt": "a photo of an oven left of a kite",
    },
    {
        "tag": "color_attr",
        "include": [KITE | {"color": "red"}, OVEN | {"color": "blue"}],
        "prompt": "a photo of a red kite and a blue oven",
    },
]


def save_geneval_models(folder: Path) -> Path:
    detector = tiny_detector()
    with torch.no_grad():  # sure of a few classes, of which the prompts name two
        detector.class_predictor.weight.mul_(4)
        detector.class_predictor.bias.fill_(-9.0)
        detector.class_predictor.bias[[CLASS_NAMES.index(name) for name in ("kite", "oven")]] = 9.0
    torch.save({"state_dict": as_mmdet(detector, 2)}, folder / "mask2former.pth")
    save_tiny_clip(folder / "clip-vit-large-patch14", CLASS_NAMES)
    return folder
