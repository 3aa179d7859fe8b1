"""UniDet: a cascade of three box heads over proposals, with 722 classes from four data sets.

    pixels ─► backbone ─► P3 … P7 ─► proposals: 1,000 boxes that may hold something
                            │            │
                            └── RoIAlign ┴─► head 1 ─► boxes ─► head 2 ─► boxes ─► head 3 ─► boxes
                                                │                  │                  │
                                  mean of the three sigmoids, over 0.5, suppression by class ─► Found

T2I-CompBench runs two of the authors' checkpoints: `Unified_learned_OCIM_RS200_6x+2x.pth` and
`Unified_learned_OCIM_R50_6x+2x.pth`, on detectron2. This reads such a file as it is, and computes the same without
detectron2. (Zhou, Koltun, Krähenbühl 2022, Simple multi-dataset detection, arXiv 2102.13086; Cai, Vasconcelos 2018,
Cascade R-CNN, arXiv 1712.00726; Apache-2.0, both UniDet and detectron2.)
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from rewards.loading.pretrained import read_state_dict
from rewards.objects.passes import passes
from rewards.objects.unidet.backbone import SIZE_DIVISOR, Backbone
from rewards.objects.unidet.layers import Conv, Linear, Weights
from rewards.objects.unidet.regions import align, anchors_of, clip, correct, has_area, suppress
from rewards.pictures.resize import Size, resize_with_pillow
from rollout.records import UInt8Array

SHORT_SIDE, LONG_SIDE = 479, 480
"""To which T2I-CompBench resizes pictures."""
STRIDES: Final = (8, 16, 32, 64, 128)
MAX_PROPOSALS: Final = 1000
"""Of each level before suppression, and of all levels behind it."""
PROPOSAL_IOU, DETECTION_IOU = 0.7, 0.5
MIN_SCORE: Final = 0.5
MAX_DETECTIONS: Final = 300
PROPOSAL_WEIGHTS: Final = (1.0, 1.0, 1.0, 1.0)
CASCADE_WEIGHTS: Final = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
BOX_LEVELS: Final = 3
"""P3, P4, P5 give the boxes' features."""
CANONICAL_SIDE, CANONICAL_LEVEL = 224.0, 4
"""A box of 224 pixels is looked at in P4, one of half of that in P3 (FPN, equation 1)."""
RESNET_STATISTICS: Final = ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
RESNEST_STATISTICS: Final = ((123.68, 116.779, 103.939), (58.393, 57.12, 57.375))
"""Mean and standard deviation of the channels, in the order in which they are given."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in one picture, the surest first, in pixels of the picture as the detector sees it."""

    boxes: np.ndarray
    """float32 [N, 4]: x0, y0, x1, y1."""
    scores: np.ndarray
    """float32 [N]."""
    labels: np.ndarray
    """int64 [N]: the classes' numbers."""


class BoxHead(nn.Module):
    """One step of the cascade: features of boxes to logits of classes and corrections of the boxes."""

    def __init__(self, weights: Weights, step: int) -> None:
        super().__init__()
        name = f"roi_heads.box_head.{step}"
        self.convs = nn.ModuleList(
            Conv(weights, f"{name}.conv{number + 1}") for number in range(weights.count(f"{name}.conv"))
        )
        self.linears = nn.ModuleList(
            Linear(weights, f"{name}.fc{number + 1}") for number in range(weights.count(f"{name}.fc"))
        )
        self.classify = Linear(weights, f"roi_heads.box_predictor.{step}.cls_score")
        self.correct = Linear(weights, f"roi_heads.box_predictor.{step}.bbox_pred")

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            features = functional.relu(conv(features))
        features = features.flatten(1)
        for linear in self.linears:
            features = functional.relu(linear(features))
        return self.classify(features), self.correct(features)


class UniDet(nn.Module):
    """See the top of this file. Raises ValueError when the weights are of another network."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.backbone = Backbone(weights)
        head = "proposal_generator.rpn_head"
        self.conv, self.objectness, self.deltas = (
            Conv(weights, f"{head}.{name}") for name in ("conv", "objectness_logits", "anchor_deltas")
        )
        self.heads = nn.ModuleList(BoxHead(weights, step) for step in range(len(CASCADE_WEIGHTS)))
        self._num_classes = len(weights.take("roi_heads.box_predictor.0.cls_score.bias")) - 1
        weights.refuse_rest()
        mean, std = RESNEST_STATISTICS if self.backbone.is_resnest else RESNET_STATISTICS
        self.mean, self.std = (
            nn.Parameter(torch.tensor(values).view(3, 1, 1), requires_grad=False) for values in (mean, std)
        )

    @property
    def num_classes(self) -> int:
        """Without the one for "nothing"."""
        return self._num_classes

    @torch.inference_mode()
    def find(self, pictures: UInt8Array) -> list[Found]:
        """What is in each of the pictures, uint8 [B, height, width, 3], RGB."""
        height, width = pictures.shape[1:3]
        resized = resize_with_pillow(pictures, resized_size(height, width), Image.Resampling.BILINEAR)
        return self.look(torch.from_numpy(resized[..., ::-1].copy()).permute(0, 3, 1, 2))

    @torch.inference_mode()
    def look(self, pixels: Tensor) -> list[Found]:
        """What is in pictures as they are: uint8 [B, 3, height, width], their channels in the order BGR."""
        device = self.mean.device
        found: list[Found] = []
        for some in passes(len(pixels), device):
            with half_precision(device):
                found += self._look(pixels[some].to(device).float())
        return found

    def _look(self, pixels: Tensor) -> list[Found]:
        height, width = pixels.shape[2:]
        pixels = (pixels - self.mean) / self.std
        pyramid = self.backbone(functional.pad(pixels, (0, -width % SIZE_DIVISOR, 0, -height % SIZE_DIVISOR)))
        hidden = [functional.relu(self.conv(features)) for features in pyramid]
        objectness = [self.objectness(features).permute(0, 2, 3, 1).flatten(1) for features in hidden]
        deltas = [self.deltas(features).permute(0, 2, 3, 1).reshape(len(pixels), -1, 4) for features in hidden]
        anchors = [anchors_of(features, stride) for features, stride in zip(pyramid, STRIDES, strict=True)]
        found = []
        for one in range(len(pixels)):
            proposals = _propose(anchors, [level[one] for level in deltas], [level[one] for level in objectness])
            boxes = _best_proposals(*proposals, height, width)
            found.append(self._cascade([level[one] for level in pyramid[:BOX_LEVELS]], boxes, height, width))
        return found

    def _cascade(self, pyramid: list[Tensor], boxes: Tensor, height: int, width: int) -> Found:
        chances = []
        for head, weights in zip(self.heads, CASCADE_WEIGHTS, strict=True):
            logits, deltas = head(_features_of(pyramid, boxes))
            chances.append(logits.sigmoid())
            boxes = clip(correct(boxes, deltas, weights), height, width)
        scores = (sum(chances[1:], start=chances[0]) * (1 / len(chances)))[:, :-1]
        usable = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        boxes, scores = boxes[usable], scores[usable]
        rows, labels = (scores > MIN_SCORE).nonzero().unbind(dim=1)
        boxes, chosen = boxes[rows], scores[rows, labels]
        kept = suppress(boxes, chosen, labels, DETECTION_IOU)[:MAX_DETECTIONS]
        kept = kept[has_area(boxes[kept])]
        return Found(boxes[kept].float().cpu().numpy(), chosen[kept].float().cpu().numpy(), labels[kept].cpu().numpy())


def _propose(anchors: list[Tensor], deltas: list[Tensor], objectness: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest boxes of each level, [N, 4], how likely they are, [N], and their level, int64 [N]."""
    boxes, likely, levels = [], [], []
    for level, (own, moves, logits) in enumerate(zip(anchors, deltas, objectness, strict=True)):
        best, places = logits.topk(min(len(logits), MAX_PROPOSALS))
        boxes.append(correct(own[places], moves[places], PROPOSAL_WEIGHTS))
        likely.append(best)
        levels.append(torch.full_like(places, level))
    return torch.cat(boxes), torch.cat(likely), torch.cat(levels)


def _best_proposals(boxes: Tensor, likely: Tensor, levels: Tensor, height: int, width: int) -> Tensor:
    boxes = clip(boxes, height, width)
    usable = boxes.isfinite().all(dim=1) & likely.isfinite() & has_area(boxes)
    boxes, likely, levels = boxes[usable], likely[usable], levels[usable]
    return boxes[suppress(boxes, likely, levels, PROPOSAL_IOU)[:MAX_PROPOSALS]]


def _features_of(pyramid: list[Tensor], boxes: Tensor) -> Tensor:
    """The features of each box, [N, C, 7, 7], from the level that fits its size."""
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    lowest = CANONICAL_LEVEL - 1
    levels = (CANONICAL_LEVEL + (sides / CANONICAL_SIDE + 1e-8).log2()).floor()
    levels = levels.clamp(lowest, lowest + BOX_LEVELS - 1).long() - lowest
    pooled: Tensor | None = None
    for level, features in enumerate(pyramid):
        own = (levels == level).nonzero()[:, 0]
        found = align(features, boxes[own], STRIDES[level])
        if pooled is None:
            pooled = found.new_zeros(len(boxes), *found.shape[1:])
        pooled[own] = found
    assert pooled is not None
    return pooled


def resized_size(height: int, width: int) -> Size:
    """Height and width of a picture as T2I-CompBench resizes it: short side 479, and no side above 480."""
    short, long = min(height, width), max(height, width)
    new_short, new_long = SHORT_SIDE, int(SHORT_SIDE * long / short)
    if new_long > LONG_SIDE:
        new_short, new_long = int(LONG_SIDE * new_short / new_long), LONG_SIDE
    return (new_short, new_long) if height <= width else (new_long, new_short)


def half_precision(device: torch.device) -> AbstractContextManager[object]:
    """T2I-CompBench's scripts run it in float16 where a GPU can; on a CPU it is float32."""
    return torch.autocast("cuda", torch.float16) if device.type == "cuda" else nullcontext()


def load_unidet(path: str, device: str) -> UniDet:
    """The detector in a file of its authors', frozen, on its device. Raises OSError or ValueError for another file."""
    return UniDet(Weights(read_state_dict(path))).eval().to(torch.device(device))
