"""The optimizer updates that are made with one batch.

    StepPlan ─► updates_per_batch times, for each mini-batch:
                    for each micro-batch, for each phase:
                        policy log-probabilities ─► bicot_grpo_terms ─► backward
                        reference and old log-probabilities, computed once and reused by later updates
                    optimizer update
                └─► one new weight version, after the last

Each micro-batch and phase is a forward and a backward pass of its own; gradients accumulate over a mini-batch. Every
rank makes the same calls with tensors of the same shapes, on its own share of the trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs.algorithm_section import Phase
from configs.schema import RunConfig
from learner.batch import MiniBatch, PhaseBatch, StepPlan
from learner.janus_policy import JanusPolicy
from learner.lora import adapters_off
from learner.objective import LossSettings, ParityGate, bicot_grpo_terms
from learner.objective.loss import TokenTensors
from learner.objective.parity import ParitySums
from learner.objective.phase_tokens import LogprobRequest
from learner.step_sums import StepSums
from learner.zero import DeepSpeedEngine
from learner.zero.engine import StepInfo


@dataclass(frozen=True, slots=True)
class BaseReference:
    """The reference policy of LoRA training: the policy itself, with its adapters switched off."""

    engine: DeepSpeedEngine

    def __call__(self, request: LogprobRequest) -> tuple[Tensor, Tensor]:
        with adapters_off(self.engine.module):
            return self.engine(request)


@dataclass(slots=True)
class _Pass:
    """One phase of one micro-batch, and the log-probabilities that do not change between updates; float32 [B, N],
    nats."""

    phase: PhaseBatch
    reference_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """The result of the updates with one batch, over all ranks."""

    updates: tuple[StepInfo, ...]
    metrics: Mapping[str, float]
    note: str | None
    """A message for the user; see `ParityGate.judge`."""


@dataclass(slots=True)
class BatchUpdater:
    """Makes the optimizer updates of a step. Every method is collective."""

    config: RunConfig
    engine: DeepSpeedEngine
    reference: JanusPolicy | BaseReference
    """Only called when a phase has a KL term."""
    device: torch.device
    _losses: dict[Phase, LossSettings] = field(init=False)
    _gate: ParityGate = field(init=False)

    def __post_init__(self) -> None:
        algorithm = self.config.algorithm
        self._losses = {phase: LossSettings.of(algorithm, phase) for phase in algorithm.phases}
        guidance_scale = self.config.rollout.guidance_scale if algorithm.policy == "guided" else 1.0
        self._gate = ParityGate(self.config.parity, self.config.model.dtype, guidance_scale)

    def update(self, plan: StepPlan) -> BatchOutcome:
        """Make all updates with one batch. Raises LearnerError when engine and learner differ; see `ParityGate`."""
        learner, version = self.config.learner, self.engine.num_steps
        sums = StepSums(self.device, len(plan.mini_batches))
        parity = ParitySums(self.device) if self._is_comparable and self._gate.is_due(version) else None
        passes = [_passes(mini_batch) for mini_batch in plan.mini_batches]
        if self._recomputes and learner.optimizer_updates_per_step > 1:
            for one in (one for of_mini_batch in passes for one in of_mini_batch):
                with torch.no_grad():
                    one.old_logprobs, _ = self._logprobs(self.engine, one.phase.to(self.device))
        note: str | None = None
        updates: list[StepInfo] = []
        for _ in range(learner.updates_per_batch):
            for number, mini_batch in enumerate(plan.mini_batches):
                is_first = not updates
                self._accumulate(passes[number], number, mini_batch.loss_divisor, sums, parity if is_first else None)
                if is_first and parity is not None:
                    parity.reduce_over_ranks()
                    note = self._gate.judge(parity, version)
                is_last = len(updates) + 1 == learner.optimizer_updates_per_step
                updates.append(self.engine.step(ends_step=is_last))
        sums.reduce_over_ranks()
        metrics = sums.metrics(plan, learner.updates_per_batch)
        return BatchOutcome(tuple(updates), metrics | (parity.metrics() if parity is not None else {}), note)

    @property
    def _is_comparable(self) -> bool:
        """Whether engine and learner compute the same log-probability; with old_logprobs guided they do not, on
        purpose."""
        return self.config.algorithm.old_logprobs != "guided"

    @property
    def _recomputes(self) -> bool:
        return self.config.algorithm.old_logprobs == "recompute"

    def _accumulate(
        self, passes: list[_Pass], mini_batch: int, loss_divisor: float, sums: StepSums, parity: ParitySums | None
    ) -> None:
        """Accumulate the gradient of one mini-batch."""
        for number, one in enumerate(passes):
            phase = one.phase.to(self.device)
            settings = self._losses[phase.tokens.phase]
            if self.config.algorithm.needs_reference and one.reference_logprobs is None:
                with torch.no_grad():
                    one.reference_logprobs, _ = self._logprobs(self.reference, phase)
            logprobs, entropy = self._logprobs(self.engine, phase, entropy_gradient=settings.entropy_coef > 0)
            if self._recomputes and one.old_logprobs is None:
                one.old_logprobs = logprobs.detach()  # there is one update only, and the weights have not changed yet
            if parity is not None:
                is_own = (phase.versions == self.engine.num_steps)[:, None]
                mask = phase.tokens.target_mask & is_own
                parity.add(phase.tokens.phase, logprobs, phase.behaviour_logprobs, mask)
            tokens = TokenTensors(
                logprobs,
                phase.behaviour_logprobs,
                phase.advantages,
                phase.tokens.target_mask,
                reference_logprobs=one.reference_logprobs,
                old_logprobs=one.old_logprobs,
                entropy=entropy,
                row_weights=phase.row_weights,
            )
            terms = bicot_grpo_terms(tokens, settings)
            self.engine.backward(terms.loss / loss_divisor, is_last=number == len(passes) - 1)
            sums.add(phase.tokens.phase, mini_batch, loss_divisor, terms, entropy, phase.tokens.target_mask)

    def _logprobs(
        self, policy: DeepSpeedEngine | JanusPolicy | BaseReference, phase: PhaseBatch, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropy of the distribution that `algorithm.policy` names, each [B, N]."""
        if self.config.algorithm.policy == "conditional":
            return policy(LogprobRequest(phase.tokens, entropy_gradient=entropy_gradient))
        return policy(
            LogprobRequest(
                phase.tokens,
                guidance_scales=phase.guidance_scales if phase.tokens.phase == "image" else None,
                temperature=self.config.rollout.temperature,
                entropy_gradient=entropy_gradient,
            )
        )


def _passes(mini_batch: MiniBatch) -> list[_Pass]:
    return [_Pass(phase) for micro_batch in mini_batch.micro_batches for phase in micro_batch.phases]
