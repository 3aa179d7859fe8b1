"""The optimizer updates that are made with one batch.

    StepPlan ─► updates_per_batch times, for each mini-batch:
                    for each micro-batch, for each phase:
                        policy log-probabilities ─► bicot_grpo_terms ─► backward
                        reference and own log-probabilities, computed once and reused by later updates
                    optimizer update
                └─► one new weight version, after the last

Each micro-batch and phase is a forward and a backward pass of its own; gradients accumulate over a mini-batch. Every
rank makes the same calls with tensors of the same shapes, on its own share of the trajectories.

The ratio's denominator q of a token that the learner's present weights sampled is what the learner itself finds before
its first update with the batch, and not what the engine recorded: the two are the same but for the rounding of two
programs, and so the ratio of such a token is exactly 1 at that update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs.algorithm_section import Phase
from configs.schema import RunConfig
from learner.batch import MiniBatch, StepPlan
from learner.janus_policy import JanusPolicy
from learner.lora import adapters_off
from learner.micro_batch import PhaseBatch
from learner.objective import LossSettings, bicot_grpo_terms
from learner.objective.loss import TokenTensors
from learner.objective.parity import ParitySums
from learner.objective.phase_tokens import LogprobRequest
from learner.parity_check import ParityCheck, logprob_request
from learner.step_sums import StepSums
from learner.zero import DeepSpeedEngine, ShardedModule
from learner.zero.engine import StepInfo
from rollout.records import GroupRollout


@dataclass(frozen=True, slots=True)
class BaseReference:
    """The reference policy of LoRA training: the policy itself, with its adapters switched off."""

    engine: DeepSpeedEngine

    def __call__(self, request: LogprobRequest) -> tuple[Tensor, Tensor]:
        with adapters_off(self.engine.module):
            return self.engine(request)


Reference = JanusPolicy | ShardedModule | BaseReference


@dataclass(slots=True)
class _Pass:
    """One phase of one micro-batch, and the log-probabilities that do not change between updates; float32 [B, N],
    nats."""

    phase: PhaseBatch
    reference_logprobs: Tensor | None = None
    own_logprobs: Tensor | None = None
    """What the learner finds before its first update with the batch."""


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
    reference: Reference
    """Only called when a phase has a KL term."""
    device: torch.device
    _losses: dict[Phase, LossSettings] = field(init=False)
    _parity: ParityCheck = field(init=False)

    def __post_init__(self) -> None:
        algorithm = self.config.algorithm
        self._losses = {phase: LossSettings.of(algorithm, phase) for phase in algorithm.phases}
        whole = self.reference if isinstance(self.reference, JanusPolicy) else None
        self._parity = ParityCheck(self.config, self.engine, whole, self.device)

    def update(self, plan: StepPlan, probes: Sequence[GroupRollout] = ()) -> BatchOutcome:
        """Make all updates with one batch. probes: see `LearnerWorker.train_step`.

        Raises LearnerError when engine and learner differ; see `ParityGate`.
        """
        learner = self.config.learner
        sums = StepSums(self.device, len(plan.mini_batches))
        parity = self._parity.begin(plan, probes)
        passes = [_passes(mini_batch) for mini_batch in plan.mini_batches]
        # Those of the first mini-batch come with its first forward pass, before any weight has changed.
        for one in (one for of_mini_batch in passes[1:] for one in of_mini_batch if self._needs_own_logprobs(one)):
            with torch.no_grad():
                one.own_logprobs, _ = self._logprobs(self.engine, one.phase.to(self.device))
        note: str | None = None
        updates: list[StepInfo] = []
        for _ in range(learner.updates_per_batch):
            for number, mini_batch in enumerate(plan.mini_batches):
                is_first = not updates
                self._accumulate(passes[number], number, mini_batch.loss_divisor, sums, parity if is_first else None)
                if is_first and parity is not None:
                    note = self._parity.judge(parity)
                is_last = len(updates) + 1 == learner.optimizer_updates_per_step
                updates.append(self.engine.step(ends_step=is_last))
        sums.reduce_over_ranks()
        metrics = sums.metrics(plan, learner.updates_per_batch)
        return BatchOutcome(
            tuple(updates), metrics | (self._parity.metrics(parity) if parity is not None else {}), note
        )

    def _needs_own_logprobs(self, one: _Pass) -> bool:
        """Whether the ratio of any of its tokens has the learner's own log-probability as denominator; the same on
        every rank."""
        if self.config.algorithm.old_logprobs == "rollout":
            return self.engine.num_steps in one.phase.versions_of_all_ranks
        return self.config.algorithm.old_logprobs == "recompute"

    def _old_logprobs(self, one: _Pass, phase: PhaseBatch) -> Tensor | None:
        """q of the loss, float32 [B, N]; None where it is what the engine recorded, throughout."""
        if one.own_logprobs is None or self.config.algorithm.old_logprobs == "recompute":
            return one.own_logprobs
        return torch.where(phase.versions == self.engine.num_steps, one.own_logprobs, phase.behaviour_logprobs)

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
            if one.own_logprobs is None and self._needs_own_logprobs(one):
                one.own_logprobs = logprobs.detach()  # no weight has changed yet
            if parity is not None:
                self._parity.compare(phase, logprobs, parity)
            tokens = TokenTensors(
                logprobs,
                phase.behaviour_logprobs,
                phase.advantages,
                phase.tokens.target_mask,
                reference_logprobs=one.reference_logprobs,
                old_logprobs=self._old_logprobs(one, phase),
                entropy=entropy,
                row_weights=phase.row_weights,
            )
            terms = bicot_grpo_terms(tokens, settings)
            self.engine.backward(terms.loss / loss_divisor, is_last=number == len(passes) - 1)
            sums.add(phase.tokens.phase, mini_batch, loss_divisor, terms, entropy, phase.tokens.target_mask)

    def _logprobs(
        self,
        policy: DeepSpeedEngine | JanusPolicy | ShardedModule | BaseReference,
        phase: PhaseBatch,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropy of the distribution that `algorithm.policy` names, each [B, N]."""
        return policy(logprob_request(self.config, phase, entropy_gradient))


def _passes(mini_batch: MiniBatch) -> list[_Pass]:
    return [_Pass(phase) for micro_batch in mini_batch.micro_batches for phase in micro_batch.phases]
