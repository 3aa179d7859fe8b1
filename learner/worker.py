"""One learner rank: trajectories in, weight versions out.

    TrajectoryBatch ─► plan_step ─► for each micro-batch, for each phase:
                                        reference log-probabilities (no gradient)
                                        policy log-probabilities ─► bicot_grpo_terms ─► backward
                                    step ─► StepReport, weight version + 1 ─► export_weights

Every rank runs the same calls with the same batch; each takes its share of it. A plain class:
`cluster` makes it a Ray actor.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.errors import LearnerError
from configs.schema import RunConfig
from learner.batch import PhaseBatch, StepPlan, plan_step
from learner.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from learner.deepspeed_engine import (
    DeepSpeedEngine,
    OptimizerSettings,
    StepInfo,
    close_distributed,
    init_distributed,
)
from learner.export import export_buckets, export_tensors, save_pretrained, weight_layout
from learner.janus_policy import JanusPolicy
from learner.loss import bicot_grpo_terms
from learner.nccl_sender import NcclSender
from learner.step_sums import StepSums
from rollout.records import TrajectoryBatch, WeightBucket

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did, over all ranks."""

    weight_version: int
    """The version that the step made; rollout workers are to have it next."""
    metrics: Mapping[str, float]
    skipped: str | None
    """Why the weights were left as they were: "non-finite loss" or "non-finite gradient"; else None."""


class LearnerWorker:
    """One rank of the learner; `setup` comes first, and everything after it is entered by all ranks."""

    def __init__(self, config: RunConfig, model_path: str, rank: int, world_size: int) -> None:
        """model_path: hub id or folder of the policy to start from, which also is the reference."""
        self._config = config
        self._model_path = model_path
        self._rank = rank
        self._world_size = world_size
        self._device_type = "cuda" if config.learner.gpus_per_rank > 0 else "cpu"
        self._device = torch.device(self._device_type)
        self._dtype: torch.dtype = getattr(torch, config.model.dtype)
        self._num_skipped = 0
        self._sender: NcclSender | None = None

    def setup(self, master_address: str, master_port: int) -> None:
        """Meet the other ranks and load policy, reference and optimizer. Raises ModelError, LearnerError."""
        learner = self._config.learner
        if learner.threads_per_rank is not None or self._device_type == "cpu":
            torch.set_num_threads(learner.threads_per_rank or 1)
        init_distributed(
            self._rank,
            self._world_size,
            master_address,
            master_port,
            self._device_type,
            self._config.run.start_timeout_s,
        )
        self._policy = self._load_policy()
        if learner.gradient_checkpointing:
            self._policy.enable_gradient_checkpointing()
        self._reference: JanusPolicy | None = None
        if self._config.algorithm.kl_coef > 0:
            self._reference = self._load_policy().requires_grad_(False).to(self._device)
        self._engine = DeepSpeedEngine(
            self._policy,
            OptimizerSettings.of(learner, self._config.run.steps),
            zero_stage=learner.zero_stage,
            dtype=self._dtype,
            device=self._device,
        )

    def _load_policy(self) -> JanusPolicy:
        return JanusPolicy.load(
            self._model_path,
            self._dtype,
            logprob_chunk_tokens=self._config.learner.logprob_chunk_tokens,
            revision=self._config.model.revision,
        )

    @property
    def weight_version(self) -> int:
        """Optimizer steps made. A skipped one counts: its version has the weights of the one before,
        and the bound on staleness keeps counting in steps of the run."""
        return self._engine.num_steps

    def train_step(self, batch: TrajectoryBatch) -> StepReport:
        """One optimizer step on a whole batch. Raises LearnerError for a batch that cannot be learned from."""
        started_s = time.perf_counter()
        algorithm, learner = self._config.algorithm, self._config.learner
        plan = plan_step(
            batch,
            rank=self._rank,
            num_ranks=self._world_size,
            micro_batch_size=learner.micro_batch_size,
            advantage_epsilon=algorithm.advantage_epsilon,
        )
        sums = StepSums(self._device)
        passes = [phase for micro_batch in plan.micro_batches for phase in micro_batch.phases]
        for number, phase in enumerate(passes):
            self._accumulate(phase.to(self._device), plan, sums, is_last=number == len(passes) - 1)
        step_version = self.weight_version
        info = self._engine.step()
        sums.reduce_over_ranks()
        metrics = {
            **sums.metrics(plan),
            **_staleness(batch, step_version),
            "grad_norm": info.grad_norm,
            "lr": info.lr,
        }
        skipped = self._note_skipped(info, metrics["loss"], batch.step)
        duration_s = time.perf_counter() - started_s
        metrics |= {"skipped_steps": float(self._num_skipped), "tokens_per_s": plan.num_tokens / duration_s}
        return StepReport(self.weight_version, metrics, skipped)

    def _accumulate(self, phase: PhaseBatch, plan: StepPlan, sums: StepSums, *, is_last: bool) -> None:
        """Gradient of one phase of one micro-batch."""
        algorithm = self._config.algorithm
        reference_logprobs = None
        if self._reference is not None:
            with torch.no_grad():
                reference_logprobs, _ = self._reference(phase.tokens)
        logprobs, entropy = self._engine(phase.tokens)
        terms = bicot_grpo_terms(
            logprobs,
            phase.behaviour_logprobs,
            reference_logprobs,
            phase.advantages,
            phase.tokens.target_mask,
            kl_coef=algorithm.kl_coef,
            clip_low=algorithm.clip_ratio_low,
            clip_high=algorithm.clip_ratio_high,
        )
        self._engine.backward(terms.loss / plan.num_tokens, is_last=is_last)
        sums.add(phase.tokens.phase, terms, entropy, phase.tokens.target_mask)

    def _note_skipped(self, info: StepInfo, loss: float, step: int) -> str | None:
        if info.applied:
            return None
        reason = "non-finite gradient" if math.isfinite(loss) else "non-finite loss"
        self._num_skipped += 1
        if self._rank == 0:
            logger.warning("step %d: %s; the step is skipped, the weights stay as they were", step, reason)
        return reason

    def export_weights(self, version: int) -> Iterator[WeightBucket]:
        """The trainable parameters, a bucket at a time; every rank must run to the end, only rank 0 yields.

        Raises LearnerError when `version` is not the one at hand.
        """
        self._check_version(version)
        return export_buckets(self._engine, self._policy, self._config.weight_sync.bucket_mb)

    def _check_version(self, version: int) -> None:
        if version != self.weight_version:
            raise LearnerError(f"weight version {version} was asked for; the learner is at {self.weight_version}")

    def weight_layout(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of all that `send_collective` sends, in its order."""
        return weight_layout(self._engine, self._policy)

    def join_collective(self, master_address: str, master_port: int, world_size: int) -> None:
        """On GPUs, form an NCCL group with the engines' workers, in place of an earlier one; only rank 0 joins.

        Raises WeightSyncError when the group does not come about.
        """
        if self._rank == 0:
            self._leave_collective()
            self._sender = NcclSender(master_address, master_port, world_size)

    def send_collective(self, version: int) -> None:
        """Broadcast the trainable parameters to the group; every rank enters. Raises LearnerError, WeightSyncError."""
        self._check_version(version)
        tensors = export_tensors(self._engine, self._policy)
        if self._sender is not None:
            self._sender.send(tensors)
        else:
            for _ in tensors:  # takes part in gathering
                pass

    def _leave_collective(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def save_checkpoint(self, directory: Path, client_state: Mapping[str, Any]) -> None:
        """Write what resuming needs, with the caller's own `client_state`."""
        state = {"caller": dict(client_state), "num_skipped": self._num_skipped}
        save_checkpoint(self._engine, CheckpointInfo.of(self._config), directory, state)

    def load_checkpoint(self, directory: Path) -> dict[str, Any]:
        """Go on where `save_checkpoint` was; returns its client_state. Raises LearnerError."""
        state = load_checkpoint(self._engine, CheckpointInfo.of(self._config), directory)
        self._num_skipped = state["num_skipped"]
        caller_state: dict[str, Any] = state["caller"]
        return caller_state

    def save_pretrained(self, directory: Path) -> None:
        """Write a Hugging Face folder with the present weights. Raises LearnerError."""
        save_pretrained(
            self._engine,
            self._policy,
            self._model_path,
            directory,
            dtype=self._dtype,
            revision=self._config.model.revision,
        )

    def close(self) -> None:
        """Free optimizer and process groups."""
        self._leave_collective()
        self._engine.destroy()
        close_distributed()


def _staleness(batch: TrajectoryBatch, version: int) -> dict[str, float]:
    """Of the batch's trajectories, in optimizer steps, at the version that learns from them."""
    lags = [
        version - trajectory.oldest_weight_version
        for group in batch.groups
        for trajectory in group.rollout.trajectories
    ]
    return {"staleness/mean": sum(lags) / len(lags), "staleness/max": float(max(lags))}
