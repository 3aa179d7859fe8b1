"""A small UniDet under its authors' names, with the weights that the recorded outputs were made with."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RECORD = Path(__file__).resolve().parents[3] / "data" / "unidet" / "record.json.gz"


PIXEL_VARIANCE = 1e4
"""Of what the ResNet's stem makes of bytes."""


def weight_of(name: str, shape: list[int], unlikely: float) -> Tensor:
    """Noise whose seed is the name's hash, of a size that lets it through many layers.

    unlikely: taken off the logits of classes, so that a few boxes are left.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    values = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        values = np.exp(0.2 * values) * (PIXEL_VARIANCE if "stem.conv1.norm" in name else 1)
    elif len(shape) == 1:
        values = 0.1 * values + (name.endswith("weight") * 1.0)
    else:
        values *= _gain(name) / np.sqrt(np.prod(shape[1:]))
    if name.endswith("cls_score.bias"):
        values -= unlikely
    if "conv3.norm.weight" in name:
        values *= 0.3
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def read_record() -> dict[str, Any]:
    """By network, R50 and RS200: names and shapes of its weights, and what the original found in pictures."""
    record: dict[str, Any] = json.loads(gzip.decompress(RECORD.read_bytes()))
    return record


def weights_of(record: dict[str, Any]) -> dict[str, Tensor]:
    return {name: weight_of(name, shape, record["unlikely"]) for name, shape in record["weights"]}


def _gain(name: str) -> float:
    if "box_predictor" in name or "rpn_head" in name:
        return 0.5 if "cls_score" in name else 0.3
    return 1.0 if "fpn" in name or "conv3" in name else math.sqrt(2)


def picture_of(height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]."""
    noise = np.random.RandomState(height).randint(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return noise.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
