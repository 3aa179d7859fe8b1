"""The head that aesthetic predictors and ImageReward share: five linear layers from an embedding to a number.

Nothing stands between the layers but dropout, which does nothing in evaluation. As published, in an nn.Sequential with
the dropouts, the layers have the numbers 0, 2, 4, 6 and 7, and 0, 2, 4, 6 and 8 in aesthetic predictor v2.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from rewards.loading.state_dicts import linear_layer

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
        layer = linear_layer(weights, layer_name)
        if layers and layer.in_features != layers[-1].out_features:
            width = layers[-1].out_features
            raise ValueError(f"{layer_name} takes {layer.in_features} numbers and follows a layer of width {width}")
        layers.append(layer)
    if layers[-1].out_features != 1:
        raise ValueError(f"{prefix}{name}.{numbers[-1]} gives {layers[-1].out_features} numbers, not one")
    return nn.Sequential(*layers).requires_grad_(False).eval()
