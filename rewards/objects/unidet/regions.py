"""Boxes of a two-stage detector: anchors, corrections, non-maximum suppression, features of a box.

A box is float [4]: x0, y0, x1, y1 in pixels of what the detector sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

ASPECT_RATIOS: Final = (0.5, 1.0, 2.0)
"""Height to width."""
SCALES: Final = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
ANCHOR_TO_STRIDE: Final = 4
MAX_LOG_GROWTH: Final = math.log(1000 / 16)
"""Of a side in one correction."""
POOLED_SIDE: Final = 7
_BOXES_AT_ONCE: Final = 128


def anchors_of(features: Tensor, stride: int) -> Tensor:
    """Nine boxes around each place of a feature map, float32 [height * width * 9, 4]: by row, column, scale, ratio.

    features [B, C, height, width]; stride: pixels between two places.
    """
    (height, width), device = features.shape[2:], features.device
    cells = []
    for scale in SCALES:
        for ratio in ASPECT_RATIOS:
            across = ANCHOR_TO_STRIDE * stride * scale / math.sqrt(ratio)
            down = ratio * across
            cells.append([-across / 2, -down / 2, across / 2, down / 2])
    x, y = (torch.arange(length, dtype=torch.float32, device=device) * stride for length in (width, height))
    at_y, at_x = torch.meshgrid(y, x, indexing="ij")
    places = torch.stack([at_x, at_y, at_x, at_y], dim=-1).reshape(-1, 1, 4)
    return (places + torch.tensor(cells, device=device)).reshape(-1, 4)


def correct(boxes: Tensor, deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes [N, 4] moved and resized by what a head says of them: deltas [N, 4], each to be divided by its weight."""
    deltas = deltas.float() / torch.tensor(weights, device=deltas.device)
    sides = boxes[:, 2:] - boxes[:, :2]
    centers = boxes[:, :2] + 0.5 * sides + deltas[:, :2] * sides
    sides = deltas[:, 2:].clamp(max=MAX_LOG_GROWTH).exp() * sides
    return torch.cat([centers - 0.5 * sides, centers + 0.5 * sides], dim=1)


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes [N, 4], cut at the borders of a picture."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def has_area(boxes: Tensor) -> Tensor:
    """bool [N]: both sides are above 0."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def suppress(boxes: Tensor, scores: Tensor, kinds: Tensor, max_iou: float) -> Tensor:
    """Indices of the boxes to keep, the surest first: of two of a kind that overlap more than `max_iou`, the surer.

    boxes [N, 4], scores [N], kinds int64 [N].
    """
    kept = []
    for kind in kinds.unique():
        own = (kinds == kind).nonzero()[:, 0]
        own = own[scores[own].argsort(descending=True, stable=True)]
        kept.append(own[_greedy(boxes[own], max_iou)])
    if not kept:
        return kinds
    together = torch.cat(kept)
    return together[scores[together].argsort(descending=True, stable=True)]


def _greedy(boxes: Tensor, max_iou: float) -> Tensor:
    """Indices of the sorted boxes that no kept one before them overlaps too much.

    All at once: a box is out if a box before it that is not out overlaps it. Begun with none out, the first boxes are
    right after the first round, those that depend on them alone after the second, and so on until nothing changes.
    """
    low, high = boxes[:, None, :2].maximum(boxes[:, :2]), boxes[:, None, 2:].minimum(boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    covers = (shared / (areas[:, None] + areas - shared) > max_iou).triu(diagonal=1)
    kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    while True:
        still = ~(covers & kept[:, None]).any(dim=0)
        if still.equal(kept):
            return kept.nonzero()[:, 0]
        kept = still


def align(features: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """RoIAlign: the mean of bilinear samples in each of 7 x 7 parts of a box, float [N, C, 7, 7].

    features [C, height, width]; boxes [N, 4]. As many samples a part as it has pixels along each side, rounded up, and
    half a pixel off, as detectron2 has it (He et al. 2017, Mask R-CNN, arXiv 1703.06870). Sampling along rows and along
    columns are two linear maps, so that a box's features are a product of three matrices.
    """
    height, width = features.shape[1:]
    scaled = boxes / stride - 0.5
    across = _sampling(scaled[:, 0], scaled[:, 2], width)
    down = _sampling(scaled[:, 1], scaled[:, 3], height)
    values = features.float().permute(1, 2, 0)
    parts = []
    with torch.autocast(features.device.type, enabled=False):  # a mean of samples is no matrix product to be rounded
        for rows, columns in zip(down.split(_BOXES_AT_ONCE), across.split(_BOXES_AT_ONCE), strict=True):
            along_rows = (rows.flatten(0, 1) @ values.flatten(1)).view(len(rows), POOLED_SIDE, width, len(features))
            parts.append((columns[:, None] @ along_rows).permute(0, 3, 1, 2))
    return torch.cat(parts).to(features.dtype)


def _sampling(start: Tensor, end: Tensor, length: int) -> Tensor:
    """Weights of the `length` places of a feature map's side in each of the seven parts of boxes: float [N, 7, length].

    start, end: float [N], the boxes' borders along that side, in places.
    """
    part = (end - start) / POOLED_SIDE
    num_samples = part.ceil().clamp(min=1)
    most = int(num_samples.max()) if len(part) else 1
    within = torch.arange(most, device=start.device)
    offsets = torch.arange(POOLED_SIDE, device=start.device)[:, None] * part[:, None, None]
    at = start[:, None, None] + offsets + (within + 0.5) * (part / num_samples)[:, None, None]
    counts = (within < num_samples[:, None])[:, None] & (at >= -1) & (at <= length) & (part > 0)[:, None, None]
    at = at.clamp(0, length - 1)
    low = at.floor()
    share = at - low
    sampled = at.new_zeros(len(start), POOLED_SIDE, length)
    for place, weight in ((low, 1 - share), ((low + 1).clamp(max=length - 1), share)):
        sampled.scatter_add_(2, place.long(), weight * counts)
    return sampled / num_samples[:, None, None]
