"""The head that aesthetic predictors and ImageReward share: five linear layers from an embedding to a number.

Nothing stands between the layers but dropout, which does nothing in evaluation. As published, in an nn.Sequential with
the dropouts, the layers have the numbers 0, 2, 4, 6 and 7, and 0, 2, 4, 6 and 8 in aesthetic predictor v2.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

PUBLISHED_NUMBERS = (0, 2, 4, 6, 7)


def build_head(
    weights: Mapping[str, Tensor], prefix: str, name: str = "layers", numbers: Sequence[int] = PUBLISHED_NUMBERS
) -> nn.Sequential:
    """The head from the weights `{prefix}{name}.N.weight` and `.bias`; float32, embeddings [B, e] to [B, 1].

    Raises ValueError when a weight is missing or no layer fits the one before.
    """
    layers: list[nn.Linear] = []
    for number in numbers:
        layer_name = f"{prefix}{name}.{number}"
        try:
            weight, bias = weights[f"{layer_name}.weight"].float(), weights[f"{layer_name}.bias"].float()
        except KeyError as error:
            raise ValueError(f"the checkpoint lacks {error}") from error
        width = layers[-1].out_features if layers else weight.shape[1]
        if weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise ValueError(f"{layer_name} of shape {tuple(weight.shape)} does not follow a layer of width {width}")
        layer = nn.Linear(width, len(weight))
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    if layers[-1].out_features != 1:
        raise ValueError(f"{prefix}{name}.{numbers[-1]} gives {layers[-1].out_features} numbers, not one")
    return nn.Sequential(*layers).requires_grad_(False).eval()
