"""What the parity gate looks at in each batch.

the first forward passes of the batch ─► tokens of the learner's own version, against what engines recorded (free)
now and then, some trajectories again, in float32 ─► temperature and guidance scale that their tokens show
                                                └──► at the first step in bfloat16: the learner's own rounding
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from configs.schema import RunConfig
from learner.batch import StepPlan
from learner.float32_pass import computing_in_float32
from learner.janus_policy import JanusPolicy
from learner.micro_batch import PhaseBatch, phases_to_compare
from learner.objective import ParityGate
from learner.objective.parity import ParitySums
from learner.objective.phase_tokens import LogprobRequest
from learner.objective.sampling import TEMPERATURE_OF, score_and_information
from learner.zero import DeepSpeedEngine
from rollout.records import GroupRollout

NUM_SAMPLED_TOKENS: Final = 4096
"""Image tokens that are passed again, over all ranks: enough to see a guidance scale that is off by a tenth."""
_STEP: Final = 0.1
"""Of the differences that stand for derivatives, as a share of the guidance scale and of 1 / temperature."""


@dataclass(slots=True)
class ParityCheck:
    """Compares engines with the learner. All ranks make the same calls."""

    config: RunConfig
    engine: DeepSpeedEngine
    reference: JanusPolicy | None
    """The policy as it was at the start, whole on this rank."""
    device: torch.device
    _gate: ParityGate = field(init=False)

    def __post_init__(self) -> None:
        self._gate = ParityGate(self.config)

    def begin(self, plan: StepPlan, probes: Sequence[GroupRollout] = ()) -> ParitySums | None:
        """The sums of a batch that is about to be trained on, with those of the probes; None where engines record, on
        purpose, something else than the learner computes."""
        if self.config.algorithm.old_logprobs == "guided":
            return None
        workers = tuple(sorted({*plan.workers, *(probe.worker_id for probe in probes)}))
        sums = ParitySums(self.device, workers)
        for probe in probes:
            for phase in phases_to_compare(probe, self.config.algorithm.phases, workers.index(probe.worker_id)):
                with torch.no_grad():
                    logprobs, _ = self.engine(logprob_request(self.config, phase.to(self.device)))
                if dist.get_rank() == 0:  # every rank passes them, since ZeRO-3 gathers weights from all
                    self.compare(phase.to(self.device), logprobs, sums)
        if self._gate.is_due(self.engine.num_steps):
            for phase in self._some_phases(plan):
                self._look_again(phase.to(self.device), sums)
        return sums

    def compare(self, phase: PhaseBatch, logprobs: Tensor, sums: ParitySums) -> None:
        """Count the tokens of the learner's own version. logprobs: float [B, N], as training finds them."""
        mask = self._own_tokens(phase)
        sums.add(phase.tokens.phase, logprobs, phase.behaviour_logprobs, mask, phase.workers)

    def judge(self, sums: ParitySums) -> str | None:
        """See `ParityGate.judge`. Collective."""
        sums.reduce_over_ranks()
        return self._gate.judge(sums, self.engine.num_steps)

    def metrics(self, sums: ParitySums) -> dict[str, float]:
        """Of a batch that was judged."""
        return self._gate.metrics(sums)

    def _own_tokens(self, phase: PhaseBatch) -> Tensor:
        return phase.tokens.target_mask & (phase.versions == self.engine.num_steps)

    def _some_phases(self, plan: StepPlan) -> Iterator[PhaseBatch]:
        """Trajectories of this rank with `NUM_SAMPLED_TOKENS` image tokens or a little more, over all ranks."""
        left = NUM_SAMPLED_TOKENS / self.config.learner.num_ranks
        for micro_batch in (one for mini_batch in plan.mini_batches for one in mini_batch.micro_batches):
            if left <= 0:
                return
            num_rows = max(1, round(left / micro_batch.phases[-1].tokens.target_ids.shape[1]))
            for phase in micro_batch.phases:
                yield phase.first_rows(num_rows)
            left -= micro_batch.phases[-1].first_rows(num_rows).tokens.target_ids.numel()

    def _look_again(self, phase: PhaseBatch, sums: ParitySums) -> None:
        policy, is_current = self._whole_policy()
        if policy is None:
            return
        if is_current and self.engine.num_steps in phase.versions_of_all_ranks:
            with torch.no_grad(), computing_in_float32(policy):
                self._add_scores(policy, phase, sums)
        if self._gate.needs_noise:
            with torch.no_grad():
                rounded, _ = policy(self._trained_request(phase))
                with computing_in_float32(policy):
                    exact, _ = policy(self._trained_request(phase))
            sums.add_noise(phase.tokens.phase, rounded, exact, phase.tokens.target_mask)

    def _add_scores(self, policy: JanusPolicy, phase: PhaseBatch, sums: ParitySums) -> None:
        """Scores of the tokens under the distribution that the config has them sampled from."""
        rollout, mask = self.config.rollout, self._own_tokens(phase)
        if phase.tokens.phase == "cot" and rollout.cot_top_k is not None:
            return  # they are drawn from a part of the distribution, which is not computed
        scale = rollout.guidance_scale if phase.tokens.phase == "image" else 1.0
        at = self._logprobs(policy, phase, scale, 1.0)
        colder, warmer = (self._logprobs(policy, phase, scale, 1 + sign * _STEP) for sign in (1, -1))
        name = TEMPERATURE_OF[phase.tokens.phase]
        sums.sampling.add(name, score_and_information(warmer, at, colder, _STEP), mask, phase.workers)
        if scale > 1.0:
            step = _STEP * scale
            above, below = (self._logprobs(policy, phase, scale + sign * step, 1.0) for sign in (1, -1))
            sums.sampling.add("guidance scale", score_and_information(below, at, above, step), mask, phase.workers)

    def _logprobs(self, policy: JanusPolicy, phase: PhaseBatch, guidance_scale: float, coldness: float) -> Tensor:
        """Of tokens sampled with this guidance scale at the config's temperature / coldness, [B, N]."""
        scales = torch.full_like(phase.guidance_scales, guidance_scale) if phase.tokens.phase == "image" else None
        temperature = self.config.rollout.temperature / coldness
        logprobs: Tensor = policy(LogprobRequest(phase.tokens, guidance_scales=scales, temperature=temperature))[0]
        return logprobs

    def _trained_request(self, phase: PhaseBatch) -> LogprobRequest:
        """For the distribution whose log-probabilities engines record."""
        return logprob_request(self.config, phase)

    def _whole_policy(self) -> tuple[JanusPolicy | None, bool]:
        """A policy with all its parameters on this rank, and whether they are the learner's present ones."""
        module = self.engine.module
        if self.engine.zero_stage < 3 and isinstance(module, JanusPolicy):
            return module, True
        return self.reference, self.engine.num_steps == 0


def logprob_request(config: RunConfig, phase: PhaseBatch, entropy_gradient: bool = False) -> LogprobRequest:
    """For the log-probabilities and entropy of the distribution that `algorithm.policy` names."""
    request = LogprobRequest(phase.tokens, entropy_gradient=entropy_gradient)
    if config.algorithm.policy == "conditional":
        return request
    scales = phase.guidance_scales if phase.tokens.phase == "image" else None
    return replace(request, guidance_scales=scales, temperature=config.rollout.temperature)
