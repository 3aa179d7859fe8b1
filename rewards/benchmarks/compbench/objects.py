"""What T2I-CompBench's detector and depth estimator see in pictures."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import DPTForDepthEstimation

from configs.errors import DataError, RewardError
from rewards.benchmarks.pictures import in_batches
from rewards.benchmarks.protocol import Asked
from rewards.loading import load_model, model_errors
from rewards.loading.pretrained import fetch_file
from rewards.objects.passes import passes
from rewards.objects.unidet import load_unidet
from rewards.objects.unidet.detector import half_precision, resized_size
from rewards.pictures.preprocessing import normalize_pixels
from rewards.pictures.resize import resize_with_pillow
from rollout.records import UInt8Array

DEPTH_SIDE: Final = 480
HALF: Final = (0.5, 0.5, 0.5)


def read_labels(path: Path) -> tuple[str, ...]:
    """The names of the detector's classes, as the official scripts read them. Raises DataError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DataError(f"{path} holds no labels of a detector")
    return tuple(labels)


class ObjectFinder:
    """UniDet with its labels, and where asked for, how near each object is. Raises ModelError.

    detector: a file of UniDet's authors, or owner/repo/file on the hub; depth: folder or hub id of DPT, or None.
    """

    def __init__(self, name: str, detector: str, labels: Sequence[str], device: str, depth: str | None = None) -> None:
        with model_errors(name, detector):
            self._detector = load_unidet(fetch_file(detector), device)
            if self._detector.num_classes != len(labels):
                raise ValueError(f"it has {self._detector.num_classes} classes, but there are {len(labels)} labels")
        self._labels = labels
        self._depth = None
        if depth is not None:
            with model_errors(name, depth):
                self._depth = load_model(DPTForDepthEstimation, depth, "float32", device)
                # Positions are interpolated to what is given; without this, other sizes than training's are refused.
                self._depth.dpt.embeddings.image_size = (DEPTH_SIDE, DEPTH_SIDE)

    def look(
        self, asked: Sequence[Asked], batch_size: int
    ) -> Iterator[tuple[Asked, list[dict[str, Any]] | RewardError]]:
        """The objects in each file, the surest first: label, score, box, and both of its depths where asked for."""
        for batch, pictures in in_batches(asked, batch_size):
            if isinstance(pictures, RewardError):
                yield batch[0], pictures
                continue
            depths: list[Tensor | None] = [None] * len(batch)
            if self._depth is not None:
                depths = [*depth_maps(self._depth, pictures)]
            for one, found, depth in zip(batch, self._detector.find(pictures), depths, strict=True):
                parts = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
                yield (
                    one,
                    [
                        {"label": self._labels[label], "score": score, "box": box, **depths_within(depth, box)}
                        for label, score, box in parts
                    ],
                )


@torch.inference_mode()
def depth_maps(model: DPTForDepthEstimation, pictures: UInt8Array) -> list[Tensor]:
    """How near each place of a picture is, 0 to 1, float32 [height, width], of the size that the detector sees.

    pictures: uint8 [B, height, width, 3]. In between it is a picture of whole gray levels, as official scripts keep it.
    """
    height, width = pictures.shape[1:3]
    seen = resize_with_pillow(pictures, (DEPTH_SIDE, DEPTH_SIDE), Image.Resampling.BILINEAR)
    maps = []
    for some in passes(len(seen), model.device):
        pixels = normalize_pixels(torch.from_numpy(seen[some]).to(model.device), HALF, HALF)
        with half_precision(model.device):
            predicted = model(pixel_values=pixels).predicted_depth.float()
        for one in predicted:
            nearness = (one - one.min()) / (one.max() - one.min())
            nearness = functional.interpolate(
                nearness[None, None], size=(height, width), mode="bilinear", align_corners=True
            )
            gray = Image.fromarray(255 * nearness[0, 0].cpu().numpy()).convert("L")
            gray = gray.resize(resized_size(height, width)[::-1], Image.Resampling.BILINEAR)
            maps.append(torch.from_numpy(np.array(gray)).float() / 255)
    return maps


def depths_within(depth: Tensor | None, box: Sequence[float]) -> dict[str, float | None]:
    """Mean depth in a box, with rows taken for columns as in the official script, and corrected; None of nothing."""
    if depth is None:
        return {}
    x0, y0, x1, y1 = map(int, box)
    parts = {"depth": depth[x0:x1, y0:y1], "depth_corrected": depth[y0:y1, x0:x1]}
    return {name: float(part.mean()) if part.numel() else None for name, part in parts.items()}
