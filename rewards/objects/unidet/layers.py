"""Convolutions with their norms, made from the weights of a detectron2 checkpoint: shapes and parts follow from names.

The layers are for inference only. Every weight that is taken is struck off a list, so that what is left in a checkpoint
in the end is something that this network has not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-5
_NOT_WEIGHTS = re.compile(r".*\.num_batches_tracked$|.*anchor_generator\..*|pixel_(mean|std)$")
"""Counters of training, and what older versions of detectron2 saved although it is made from the config."""


class Weights:
    """A checkpoint's tensors by name. Raises ValueError for a name that is not there."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: tensor for name, tensor in tensors.items() if not _NOT_WEIGHTS.match(name)}
        self._left = set(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str) -> nn.Parameter:
        """The tensor of that name, as float32."""
        if name not in self._tensors:
            raise ValueError(f"the checkpoint lacks {name}")
        self._left.discard(name)
        return nn.Parameter(self._tensors[name].float(), requires_grad=False)

    def count(self, stem: str) -> int:
        """How many of `{stem}0.`, `{stem}1.` and so on are there, from the first one on."""
        pattern = re.compile(rf"^{re.escape(stem)}(\d+)\.")
        return len({match[1] for match in map(pattern.match, self._tensors) if match})

    def refuse_rest(self) -> None:
        """Raise ValueError when something was not taken."""
        if self._left:
            raise ValueError(
                f"the checkpoint holds {len(self._left)} weights that UniDet has not, the first is {min(self._left)}"
            )


class Norm(nn.Module):
    """Batch normalisation with the statistics of training, whether they were frozen then or not."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.weight, self.bias = weights.take(f"{name}.weight"), weights.take(f"{name}.bias")
        self.mean, self.variance = weights.take(f"{name}.running_mean"), weights.take(f"{name}.running_var")

    def forward(self, features: Tensor) -> Tensor:
        return functional.batch_norm(features, self.mean, self.variance, self.weight, self.bias, eps=EPS)


class Conv(nn.Module):
    """A convolution that keeps the size but for its stride, with a bias and a norm where the checkpoint has them."""

    def __init__(self, weights: Weights, name: str, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.weight = weights.take(f"{name}.weight")
        self.bias = weights.take(f"{name}.bias") if f"{name}.bias" in weights else None
        self.norm = Norm(weights, f"{name}.norm") if f"{name}.norm.weight" in weights else None
        self._stride, self._groups = stride, groups

    @property
    def out_channels(self) -> int:
        return len(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        padding = self.weight.shape[-1] // 2
        features = functional.conv2d(features, self.weight, self.bias, self._stride, padding, groups=self._groups)
        return features if self.norm is None else self.norm(features)


class Linear(nn.Module):
    """A linear layer of the checkpoint's."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.weight, self.bias = weights.take(f"{name}.weight"), weights.take(f"{name}.bias")

    def forward(self, features: Tensor) -> Tensor:
        return functional.linear(features, self.weight, self.bias)
