"""What the converters of published checkpoints do with state dicts alike."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

StateDict = dict[str, Tensor]


def count_layers(weights: Mapping[str, Tensor], stem: str) -> int:
    """Number of layers under `{stem}.0.`, `{stem}.1.` and so on. Raises ValueError when there is none."""
    pattern = re.compile(rf"^{re.escape(stem)}\.(\d+)\.")
    numbers = [int(match[1]) for match in map(pattern.match, weights) if match]
    if not numbers:
        raise ValueError(f"the checkpoint holds nothing under {stem}.0")
    return 1 + max(numbers)


def linear_layer(weights: Mapping[str, Tensor], name: str) -> nn.Linear:
    """The layer of `{name}.weight` and `{name}.bias`, float32. Raises ValueError when one is missing or odd."""
    try:
        weight, bias = weights[f"{name}.weight"].float(), weights[f"{name}.bias"].float()
    except KeyError as error:
        raise ValueError(f"the checkpoint lacks {error}") from error
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(f"{name} is no linear layer: weight {tuple(weight.shape)}, bias {tuple(bias.shape)}")
    layer = nn.Linear(weight.shape[1], len(weight))
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
