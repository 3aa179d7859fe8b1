"""The parity gate: do engines and learner run the same policy?

    |p - q| of the tokens that the learner's own version sampled ──┐ by worker
    temperature and guidance scale that the tokens show ───────────┴─► metrics parity/…
                        the first two versions that are compared: off ─► LearnerError, before any optimizer update
                        later:                                    off ─► a note

p is the log-probability that the learner computes, q the one that an engine recorded under the same weights. They
should differ by rounding alone. A wrong context or mask, other weights, or a kernel that is wrong change one of the
two, and show here before they show in a loss curve. The first comparison is of the weights that engines load from a
folder, the second one of what weight sync has brought them.

How large rounding is depends on model and precision: in float32 it is far below 1e-3 nats. In bfloat16 the limit is a
multiple of the learner's own noise, the mean |p in bfloat16 - p in float32|, since what a kernel rounds is about as
large in one program as in another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from configs.algorithm_section import Phase
from configs.errors import LearnerError
from configs.schema import RunConfig
from learner.objective.loss import k3_kl
from learner.objective.sampling import SETTINGS, TEMPERATURE_OF, Estimate, SamplingSums, Setting

_PHASES: tuple[Phase, ...] = ("cot", "image")
_NAMES = {"cot": "semantic CoT", "image": "image"}
NOISE_FACTOR: Final = 4.0
"""Two programs that round independently differ by 1.4 times the noise of one; as much again is left for kernels that
round in other places."""
MIN_TOKENS: Final = 32
"""Of a worker's phase, before its mean is judged."""
_NUM_FATAL: Final = 2


class ParitySums:
    """Sums over tokens, by worker and phase, in float64, so that the order of addition does not matter."""

    def __init__(self, device: torch.device, workers: Sequence[str]) -> None:
        """workers: ids of the workers whose tokens are compared; rows of `add` name them by their place here."""
        self.workers = tuple(workers)
        self.sampling = SamplingSums(device, len(workers))
        self._sums = torch.zeros(len(workers), len(_PHASES), 4, dtype=torch.float64, device=device)
        """Sum of |p - q|, of p - q, of the k3 estimates of KL(engine || learner), number of tokens."""
        self._largest = torch.zeros(len(_PHASES), dtype=torch.float64, device=device)
        self._noise = torch.zeros(len(_PHASES), 2, dtype=torch.float64, device=device)
        """Sum of |p in bfloat16 - p in float32|, number of tokens."""

    def add(self, phase: Phase, logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, workers: Tensor) -> None:
        """Count the tokens of mask (bool [B, N]); logprobs and behaviour_logprobs: float [B, N], nats; workers:
        int64 [B]."""
        ours, theirs = logprobs.detach()[mask].double(), behaviour_logprobs[mask].double()
        if not len(ours):
            return
        row, difference = _PHASES.index(phase), ours - theirs
        values = torch.stack([difference.abs(), difference, k3_kl(theirs, ours), torch.ones_like(ours)], 1)
        self._sums[:, row].index_add_(0, workers[mask.nonzero()[:, 0]], values)
        self._largest[row] = torch.maximum(self._largest[row], difference.abs().max())

    def add_noise(self, phase: Phase, logprobs: Tensor, exact_logprobs: Tensor, mask: Tensor) -> None:
        """Count tokens whose log-probabilities the learner has computed in its own precision and in float32."""
        difference = (logprobs[mask].double() - exact_logprobs[mask].double()).abs()
        self._noise[_PHASES.index(phase)] += torch.stack([difference.sum(), torch.ones_like(difference).sum()])

    def reduce_over_ranks(self) -> None:
        """Collective; after it every rank holds the sums of all."""
        dist.all_reduce(self._sums, dist.ReduceOp.SUM)
        dist.all_reduce(self._noise, dist.ReduceOp.SUM)
        dist.all_reduce(self._largest, dist.ReduceOp.MAX)
        self.sampling.reduce_over_ranks()

    def means(self) -> dict[tuple[str, Phase], float]:
        """Mean |p - q| in nats of each worker and phase with tokens enough, and of those with one that is no number."""
        return {
            (worker, phase): total / count
            for worker, of_worker in zip(self.workers, self._sums.tolist(), strict=True)
            for phase, (total, _, _, count) in zip(_PHASES, of_worker, strict=True)
            if count >= MIN_TOKENS or math.isnan(total)
        }

    def noise(self) -> dict[Phase, float]:
        """Mean |p in bfloat16 - p in float32| of the phases of which it was measured, nats."""
        return {
            phase: total / count for phase, (total, count) in zip(_PHASES, self._noise.tolist(), strict=True) if count
        }

    def metrics(self) -> dict[str, float]:
        """As `cluster.reports.metrics` documents them; of the phases that have tokens, over all workers."""
        result: dict[str, float] = {}
        rows = zip(_PHASES, self._sums.sum(0).tolist(), self._largest.tolist(), strict=True)
        for phase, (total, bias, kl, count), largest in rows:
            if count > 0:
                result |= {
                    f"parity/mean_abs/{phase}": total / count,
                    f"parity/max_abs/{phase}": largest,
                    f"parity/bias/{phase}": bias / count,
                    f"parity/kl/{phase}": kl / count,
                }
        return result


class ParityGate:
    """What counts as a difference, and what is done about it."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config.parity
        self._dtype = config.model.dtype
        self._temperature, self._guidance_scale = config.rollout.temperature, config.rollout.guidance_scale
        # The coefficients of u + w (c - u) are w and 1 - w: the mix is off by at most 2w - 1 times what c and u are.
        mixed = 2 * self._guidance_scale - 1
        is_guided = config.algorithm.policy == "guided"
        # The logits that are sampled from, against those that log-probabilities are of.
        colder = 1.0 if is_guided else 1 / self._temperature
        self._sampled: Mapping[Phase, float] = {"cot": colder, "image": colder * (1.0 if is_guided else mixed)}
        self._magnification: Mapping[Phase, float] = {"cot": 1.0, "image": mixed if is_guided else 1.0}
        self._noise: dict[Phase, float] = {}
        self._num_judged = 0
        self._noted_at: int | None = None

    def is_due(self, version: int) -> bool:
        """Whether more is to be looked at in the step that starts at `version` than what is free."""
        return self._num_judged < _NUM_FATAL or version % self._config.every_steps == 0

    @property
    def needs_noise(self) -> bool:
        """Whether the limits depend on the learner's rounding, which is not known yet."""
        return self._dtype == "bfloat16" and self._config.max_abs is None and not self._noise

    def limit(self, phase: Phase) -> float:
        """Largest mean |p - q| of a worker, nats."""
        if (noise := self._noise.get(phase)) is not None and self._config.max_abs is None:
            return max(NOISE_FACTOR * noise, self._config.limit("float32"))
        return self._config.limit(self._dtype, self._magnification[phase])

    def _rounding(self) -> Mapping[Setting, float]:
        """Standard deviation of the rounding of the logits that engines sample from, by what they show; see
        `learner.objective.sampling`. Nothing in float32."""
        if self._dtype == "float32":
            return {}
        # The mean of a normal variable's size is sqrt(2 / pi) of its standard deviation.
        of = {
            phase: math.sqrt(math.pi / 2) * self._noise.get(phase, self.limit(phase) / NOISE_FACTOR)
            for phase in _PHASES
        }
        text, image = of["cot"] * self._sampled["cot"], of["image"] * self._sampled["image"]
        return {TEMPERATURE_OF["cot"]: text, TEMPERATURE_OF["image"]: image, SETTINGS[2]: image}

    def judge(self, sums: ParitySums, version: int) -> str | None:
        """A note when a worker's tokens differ from the learner's by more than the limit, or show another temperature
        or guidance scale than the config's; `sums` are of all ranks.

        Raises LearnerError in place of the note at the first two versions that are compared, when little or nothing
        was learned from what may be wrong.
        """
        if self.needs_noise:
            self._noise = sums.noise()
        means = sums.means()
        if not means:
            return None
        may_end, self._num_judged = self._num_judged < _NUM_FATAL, self._num_judged + 1
        # A difference that is not a number is above every limit.
        found = [
            f"worker {worker} by {mean:.3g} nats a token of the {_NAMES[phase]} (allowed: {self.limit(phase):.3g})"
            for (worker, phase), mean in means.items()
            if math.isnan(mean) or mean > self.limit(phase)
        ]
        reasons = self._wrong_sampling(sums)
        if found:
            reasons.insert(0, f"log-probabilities recorded and found under the same weights differ: {', '.join(found)}")
        if not reasons:
            return None
        note = f"parity gate, weight version {version}: {'; '.join(reasons)}"
        if may_end:
            raise LearnerError(
                f"{note}. Engines and learner do not run the same policy, and ratios between them mean nothing: look "
                "for a model folder that changed, weights that a worker missed, another temperature or guidance on "
                "one side, or a kernel that is wrong. If rounding is this large on your hardware, raise parity.max_abs"
            )
        if self._noted_at is not None and version < self._noted_at + self._config.every_steps:
            return None
        self._noted_at = version
        return note

    def metrics(self, sums: ParitySums) -> dict[str, float]:
        """Those of the sums, with the limits and what the sampled tokens show."""
        result = sums.metrics()
        result |= {f"parity/limit/{phase}": self.limit(phase) for phase in _PHASES if f"parity/kl/{phase}" in result}
        keys = ("parity/temperature/cot", "parity/temperature/image", "parity/guidance_scale")
        names = dict(zip(SETTINGS, keys, strict=True))
        return result | {names[estimate.setting]: estimate.value for estimate in self._estimates(sums, None)}

    def _wrong_sampling(self, sums: ParitySums) -> list[str]:
        """Of the workers whose own tokens show it, or, where a worker's are too few, of all together."""
        of_each = [(f"worker {w}", self._off(sums, place)) for place, w in enumerate(sums.workers)]
        found = [(who, off) for who, off in of_each if off] or [("all workers together", self._off(sums, None))]
        return [f"the tokens of {who} show a {' and a '.join(off)}" for who, off in found if off]

    def _off(self, sums: ParitySums, worker: int | None) -> list[str]:
        return [
            f"{estimate.setting} of {estimate.value:.3g}, {estimate.num_errors:.1f} standard errors from "
            f"{estimate.configured:g}"
            for estimate in self._estimates(sums, worker)
            if estimate.is_off(self._config.max_sampling_error)
        ]

    def _estimates(self, sums: ParitySums, worker: int | None) -> Sequence[Estimate]:
        return sums.sampling.estimates(self._temperature, self._guidance_scale, worker, self._rounding())
