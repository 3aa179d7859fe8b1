"""The parity gate: do engine and learner run the same policy?

    first pass over a batch ─► |p - q| of tokens that the learner's own version sampled ─► metrics parity/…
                                   first time: above the limit ─► LearnerError, before any optimizer update
                                   later:      above the limit ─► a note

p is the log-probability that the learner computes, q the one that the engine recorded under the same weights. They
should differ by rounding alone. A wrong context, mask, temperature, guidance or weight sync changes one of the two, and
shows here before it shows in a loss curve. The learner computes p in any case, so the comparison costs two sums.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from configs.algorithm_section import Phase
from configs.errors import LearnerError
from configs.schema import ParityConfig
from learner.objective.loss import k3_kl

_PHASES: tuple[Phase, ...] = ("cot", "image")
_NAMES = {"cot": "semantic CoT", "image": "image"}


class ParitySums:
    """Sums of differences of log-probabilities, by phase, in float64, so that the order of addition does not matter."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_PHASES), 3, dtype=torch.float64, device=device)
        """Sum of |p - q|, sum of the k3 estimates of KL(engine || learner), number of tokens."""
        self._largest = torch.zeros(len(_PHASES), dtype=torch.float64, device=device)

    def add(self, phase: Phase, logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor) -> None:
        """Count the tokens of mask (bool [B, N]); logprobs and behaviour_logprobs: float [B, N], nats."""
        ours, theirs = logprobs.detach()[mask].double(), behaviour_logprobs[mask].double()
        if not len(ours):
            return
        difference = (ours - theirs).abs()
        row = _PHASES.index(phase)
        self._sums[row] += torch.stack(
            [difference.sum(), k3_kl(theirs, ours).sum(), torch.full_like(difference[0], len(ours))]
        )
        self._largest[row] = torch.maximum(self._largest[row], difference.max())

    def reduce_over_ranks(self) -> None:
        """Collective; after it every rank holds the sums of all."""
        dist.all_reduce(self._sums, dist.ReduceOp.SUM)
        dist.all_reduce(self._largest, dist.ReduceOp.MAX)

    def means(self) -> dict[Phase, float]:
        """Mean |p - q| of the phases that have tokens, nats."""
        return {
            phase: total / count
            for phase, (total, _, count) in zip(_PHASES, self._sums.tolist(), strict=True)
            if count > 0
        }

    def metrics(self) -> dict[str, float]:
        """As `cluster.reports.metrics` documents them; of the phases that have tokens."""
        result: dict[str, float] = {}
        rows = zip(_PHASES, self._sums.tolist(), self._largest.tolist(), strict=True)
        for phase, (total, kl, count), largest in rows:
            if count > 0:
                result |= {
                    f"parity/mean_abs/{phase}": total / count,
                    f"parity/max_abs/{phase}": largest,
                    f"parity/kl/{phase}": kl / count,
                }
        return result


class ParityGate:
    """When to compare, and what to do about the result."""

    def __init__(self, config: ParityConfig, dtype: str, guidance_scale: float = 1.0) -> None:
        """dtype: the model's, `float32` or `bfloat16`; guidance_scale: w of a policy that trains guided."""
        # The coefficients of u + w (c - u) are w and 1 - w: the mix is off by at most 2w - 1 times what c and u are.
        self._limits = {"cot": config.limit(dtype), "image": config.limit(dtype, 2 * guidance_scale - 1)}
        self._every_steps = config.every_steps
        self._passed = False
        """Whether anything was compared before."""

    def is_due(self, version: int) -> bool:
        """Whether the step that starts at `version` is compared."""
        return not self._passed or version % self._every_steps == 0

    def judge(self, sums: ParitySums, version: int) -> str | None:
        """A note when a phase's mean |difference| is above the limit; `sums` are of all ranks.

        Raises LearnerError in place of the first note, when nothing was learned yet from what may be wrong.
        """
        means = sums.means()
        is_first, self._passed = not self._passed, self._passed or bool(means)
        # A difference that is not a number is above every limit.
        above = {phase: mean for phase, mean in means.items() if math.isnan(mean) or mean > self._limits[phase]}
        if not above:
            return None
        figures = " and ".join(
            f"{mean:.3g} nats a token of the {_NAMES[phase]} (allowed: {self._limits[phase]:g})"
            for phase, mean in above.items()
        )
        note = (
            f"parity gate, weight version {version}: the log-probabilities that the engine recorded and those that the "
            f"learner finds under the same weights differ by {figures}, on average"
        )
        if is_first:
            raise LearnerError(
                f"{note}. The two do not run the same policy, and ratios between them mean nothing: look for a model "
                "folder that changed, another chat template, temperature or guidance on one side, or a kernel that "
                "is wrong. If rounding is this large on your hardware, raise parity.max_abs"
            )
        return note
