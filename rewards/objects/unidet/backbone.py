"""UniDet's backbone: ResNet-50 or ResNeSt-200, and a feature pyramid P3 to P7 over it.

    pixels ─► stem ─► res2 ─► res3 ─► res4 ─► res5          strides 4, 4, 8, 16, 32
                               │       │       │
                               P3  ◄── P4  ◄── P5 ─► P6 ─► P7    1 x 1, twice as large from above, 3 x 3

Which of the two it is, and how many blocks of which width, is read from the checkpoint. (He et al. 2016,
arXiv 1512.03385; Zhang et al. 2020, ResNeSt, arXiv 2004.08955; Lin et al. 2017, FPN, arXiv 1612.03144.)
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from rewards.objects.unidet.layers import Conv, Norm, Weights

RADIX: Final = 2
"""Splits of ResNeSt's attention."""
SIZE_DIVISOR: Final = 32
_BOTTOM_UP: Final = "backbone.bottom_up"


class SplitAttention(nn.Module):
    """ResNeSt's 3 x 3 convolution: two splits, weighed against each other channel by channel."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.conv = Conv(weights, f"{name}.conv", groups=RADIX)
        self.bn0, self.bn1 = Norm(weights, f"{name}.bn0"), Norm(weights, f"{name}.bn1")
        self.fc1, self.fc2 = Conv(weights, f"{name}.fc1"), Conv(weights, f"{name}.fc2")

    def forward(self, features: Tensor) -> Tensor:
        splits = functional.relu(self.bn0(self.conv(features))).chunk(RADIX, dim=1)
        pooled = functional.adaptive_avg_pool2d(splits[0] + splits[1], 1)
        logits = self.fc2(functional.relu(self.bn1(self.fc1(pooled))))
        first, second = torch.stack(logits.chunk(RADIX, dim=1), dim=1).softmax(dim=1).unbind(dim=1)
        return first * splits[0] + second * splits[1]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 and a shortcut.

    A stride is that of the first convolution in a ResNet; ResNeSt averages behind the second one, and in the shortcut.
    """

    def __init__(self, weights: Weights, name: str, stride: int) -> None:
        super().__init__()
        self._is_split = f"{name}.conv2.fc1.weight" in weights
        self._stride = stride
        own = 1 if self._is_split else stride
        self.conv1 = Conv(weights, f"{name}.conv1", own)
        self.conv2 = SplitAttention(weights, f"{name}.conv2") if self._is_split else Conv(weights, f"{name}.conv2")
        self.conv3 = Conv(weights, f"{name}.conv3")
        self.shortcut = Conv(weights, f"{name}.shortcut", own) if f"{name}.shortcut.weight" in weights else None

    def forward(self, features: Tensor) -> Tensor:
        made = self.conv2(functional.relu(self.conv1(features)))
        if not self._is_split:
            made = functional.relu(made)
        elif self._stride > 1:
            made = functional.avg_pool2d(made, 3, self._stride, padding=1)
        made = self.conv3(made)
        if self.shortcut is not None:
            if self._is_split and self._stride > 1:
                features = functional.avg_pool2d(
                    features, self._stride, self._stride, ceil_mode=True, count_include_pad=False
                )
            features = self.shortcut(features)
        return functional.relu(made + features)


class Backbone(nn.Module):
    """Pixels, float [B, 3, height, width] with sides that 32 divides, to P3, P4, P5, P6, P7."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        stem = f"{_BOTTOM_UP}.stem"
        self.is_resnest = f"{stem}.conv1_1.weight" in weights
        if self.is_resnest:
            self.stem = nn.ModuleList(
                Conv(weights, f"{stem}.conv1_{number}", 2 if number == 1 else 1) for number in (1, 2, 3)
            )
        else:
            self.stem = nn.ModuleList([Conv(weights, f"{stem}.conv1", 2)])
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Bottleneck(weights, f"{_BOTTOM_UP}.res{stage}.{block}", 2 if stage > 2 and block == 0 else 1)
                    for block in range(weights.count(f"{_BOTTOM_UP}.res{stage}."))
                )
            )
            for stage in (2, 3, 4, 5)
        )
        self.laterals = nn.ModuleList(Conv(weights, f"backbone.fpn_lateral{level}") for level in (3, 4, 5))
        self.outputs = nn.ModuleList(Conv(weights, f"backbone.fpn_output{level}") for level in (3, 4, 5))
        self.p6, self.p7 = (Conv(weights, f"backbone.top_block.{name}", 2) for name in ("p6", "p7"))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features = pixels
        for conv in self.stem:
            features = functional.relu(conv(features))
        features = functional.max_pool2d(features, 3, 2, padding=1)
        found = []
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        above: Tensor | None = None
        pyramid: list[Tensor] = []
        for lateral, output, features in reversed(list(zip(self.laterals, self.outputs, found[1:], strict=True))):
            own = lateral(features)
            above = own if above is None else own + functional.interpolate(above, scale_factor=2.0, mode="nearest")
            pyramid.insert(0, output(above))
        p6 = self.p6(pyramid[-1])
        return [*pyramid, p6, self.p7(functional.relu(p6))]
