"""Which temperature and guidance scale do the engine's own tokens show?

The log-probability that an engine records of a token says nothing of how the token was sampled: the conditional one is
the same whatever the temperature and the guidance scale were. But the tokens themselves do. Under the distribution that
the config asks for, g = softmax((u + w (c - u)) / T), the score of each token, the derivative of log g(x) after a
parameter, has mean 0, given what came before it. The parameter that makes the tokens likeliest is, to first order, off
by sum(score) / sum(information), with a standard error of 1 / sqrt(sum(information)) (Rao's score test). In w and in
1 / T the logits are linear, so the second derivative of log g(x) does not depend on x: it is the information, with the
sign turned. Both derivatives are central differences of the log-probability.

An engine that rounds samples from logits that are off by some e, independent from token to token, of variance s^2: to
second order the mean of a score then is -s^2 Cov_g(g, l) in place of 0, with l the logits' derivative after the
parameter. Since Var_g(g) <= 1/4 and Var_g(l) is the information, its size is at most s^2 / 2 sqrt(information). So much
of a sum of scores shows nothing.
Pure functions of per-token tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Setting = Literal["temperature of the semantic CoT", "temperature of the image tokens", "guidance scale"]
SETTINGS: Final[tuple[Setting, ...]] = (
    "temperature of the semantic CoT", "temperature of the image tokens", "guidance scale",
)  # fmt: skip
TEMPERATURE_OF: Final[Mapping[str, Setting]] = {"cot": SETTINGS[0], "image": SETTINGS[1]}
MIN_DEVIATION: Final = 4.5
"""Standard errors by which an estimate must be off, besides being off by much."""


def score_and_information(below: Tensor, at: Tensor, above: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """First derivative of log g(x) after a parameter, and the negative second one, of each token.

    below, at, above: float, of any shape: log g(x) where the parameter is smaller by `step`, as configured, and larger.
    """
    return (above - below) / (2 * step), (2 * at - above - below) / step**2


@dataclass(frozen=True, slots=True)
class Estimate:
    """What some tokens show of one setting."""

    setting: Setting
    configured: float
    value: float
    num_errors: float
    """By how many standard errors the tokens contradict the configured value; never negative."""
    num_tokens: int

    def is_off(self, tolerance: float) -> bool:
        """Whether the value differs from the configured one by more than this share of it, and not by chance. What is
        not a number is off."""
        share = abs(self.value / self.configured - 1)
        return math.isnan(self.num_errors) or (share > tolerance and self.num_errors > MIN_DEVIATION)


class SamplingSums:
    """Sums of scores by worker and setting, in float64."""

    def __init__(self, device: torch.device, num_workers: int) -> None:
        self._sums = torch.zeros(num_workers, len(SETTINGS), 4, dtype=torch.float64, device=device)
        """Sum of scores, of information, of its square roots, number of tokens."""

    def add(
        self, setting: Setting, score_and_information: tuple[Tensor, Tensor], mask: Tensor, workers: Tensor
    ) -> None:
        """Count the tokens of mask (bool [B, N]): both float [B, N], after the guidance scale, or after log (1 / T);
        workers: int64 [B], the place of each row's."""
        scores, information = (values[mask].double() for values in score_and_information)
        # A second difference of rounded values may fall below 0.
        deviations = information.clamp(min=0).sqrt()
        values = torch.stack([scores, information, deviations, torch.ones_like(scores)], 1)
        self._sums[:, SETTINGS.index(setting)].index_add_(0, workers[mask.nonzero()[:, 0]], values)

    def reduce_over_ranks(self) -> None:
        """Collective; after it every rank holds the sums of all."""
        dist.all_reduce(self._sums, dist.ReduceOp.SUM)

    def estimates(
        self,
        temperature: float,
        guidance_scale: float,
        worker: int | None = None,
        rounding: Mapping[Setting, float] = MappingProxyType({}),
    ) -> Sequence[Estimate]:
        """Of each setting that there are tokens of, from those of one worker, or of all.

        temperature, guidance_scale: what the config says. rounding: standard deviation by which an engine's logits are
        off, those that it samples from; 0 where it is not given.
        """
        sums = self._sums.sum(0) if worker is None else self._sums[worker]
        found = []
        for setting, (score, information, deviations, count) in zip(SETTINGS, sums.tolist(), strict=True):
            if not count or information <= 0:
                continue
            by_rounding = rounding.get(setting, 0.0) ** 2 / 2 * deviations
            shift = score / information
            num_errors = max(abs(score) - by_rounding, 0.0) / math.sqrt(information)  # a NaN first stays one
            if setting == "guidance scale":
                configured, value = guidance_scale, guidance_scale + shift
            else:
                configured, value = temperature, temperature / max(1 + shift, 1e-3)
            found.append(Estimate(setting, configured, value, num_errors, int(count)))
        return found
