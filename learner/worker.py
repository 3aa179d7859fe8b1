"""One learner rank: from a batch of trajectories to an optimizer step and a new weight version.

    TrajectoryBatch ─► plan_step ─► BatchUpdater ─► StepReport, weight version + 1 ─► export_weights

Data parallelism: every rank makes the same calls with the same whole batch, and computes on its own share of it.
This is a plain class; `cluster.actors.learner` wraps it in a Ray actor.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import JanusForConditionalGeneration

from configs.errors import LearnerError, WeightSyncError
from configs.schema import RunConfig
from learner.batch import PlanSettings, plan_step
from learner.batch_updates import BaseReference, BatchUpdater
from learner.checkpoint import Snapshot, load_checkpoint
from learner.export import PretrainedWriter, export_buckets, export_tensors, weight_layout
from learner.janus_policy import JanusPolicy, load_janus
from learner.lora import PeftFormat
from learner.prompt_check import PromptCheck
from learner.zero import DeepSpeedEngine, OptimizerSettings, ShardedModule, close_distributed, init_distributed
from learner.zero.engine import StepInfo
from rollout.janus_checkpoint import resolve_folder
from rollout.prompts import Conversation
from rollout.records import GroupPlace, GroupRollout, TrajectoryBatch, WeightBucket
from rollout.weights.groups import WeightGroup
from rollout.weights.lending import LentMemory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepReport:
    """The result of one step, over all ranks."""

    weight_version: int
    """The version of the weights after the step; rollout workers receive it next."""
    metrics: Mapping[str, float]
    skipped: str | None
    """Why an update was left out: "non-finite loss" or "non-finite gradient"; None where all were applied."""
    note: str | None = None
    """A message for the user about this step, such as a parity gate that found a difference."""
    has_learned: bool = True
    """Whether any of its updates was applied."""


class LearnerWorker:
    """One rank of the learner. Every method but `weight_version` and `weight_layout` is entered by all ranks."""

    def __init__(
        self,
        config: RunConfig,
        rank: int,
        policy: JanusPolicy,
        engine: DeepSpeedEngine,
        updater: BatchUpdater,
        prompts: PromptCheck,
        writer: PretrainedWriter | None,
        device: torch.device,
    ) -> None:
        """Of a policy, the engine around it, an updater of that engine, a look at prompts, and on rank 0 a writer;
        `start` gives one."""
        self._config = config
        self._rank = rank
        self._policy = policy
        self._engine = engine
        self._updater = updater
        self._prompts = prompts
        self._snapshot = Snapshot(engine, policy, writer)
        self._num_skipped = 0
        self._device = device
        self._group: WeightGroup | None = None
        self._lent: LentMemory | None = None

    @classmethod
    def start(
        cls, config: RunConfig, model_path: str, rank: int, *, master_address: str, master_port: int
    ) -> LearnerWorker:
        """Rank `rank` of `learner.num_ranks`, after it has met the others and loaded policy, reference and optimizer.

        model_path: hub id or folder of the policy to start from, which also is the reference. For the whole process
        this sets PyTorch's number of threads on a CPU, and, with `run.deterministic`, its deterministic algorithms.
        Raises ModelError, LearnerError.
        """
        learner, device = config.learner, _device(config)
        if learner.threads_per_rank is not None or device.type == "cpu":
            torch.set_num_threads(learner.threads_per_rank or 1)
        if config.run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as torch asks for, on GPUs
            torch.use_deterministic_algorithms(True)
        init_distributed(rank, learner.num_ranks, master_address, master_port, device.type, config.run.start_timeout_s)
        janus = load_janus(model_path, _dtype(config), config.model.revision)
        policy = _load_policy(config, model_path, janus)
        conversation = Conversation.of_run(model_path, config.rollout, config.model.revision)
        folder = resolve_folder(model_path, config.model.revision)
        lora, revision = learner.lora, config.model.revision
        peft = None if lora is None else PeftFormat(lora, model_path, revision)
        writer = PretrainedWriter(janus, policy, folder, conversation.format, peft) if rank == 0 else None
        del janus  # what the writer does not hold is the policy's, or free
        if learner.gradient_checkpointing:
            policy.enable_gradient_checkpointing()
        reference = _load_reference(config, model_path)
        engine = DeepSpeedEngine(
            policy,
            OptimizerSettings.of(learner, config.run.steps),
            zero_stage=learner.zero_stage,
            dtype=_dtype(config),
            device=device,
        )
        if isinstance(reference, JanusPolicy):
            if learner.zero_stage < 3:  # which partitions what is frozen, too
                reference.share_frozen(policy)
            reference.to(device)
        updater = BatchUpdater(config, engine, reference or BaseReference(engine), device)
        return cls(config, rank, policy, engine, updater, PromptCheck(config, conversation), writer, device)

    @property
    def weight_version(self) -> int:
        """Number of batches that were trained on. One batch gives one weight version, however many optimizer updates
        are made with it. A skipped update counts, too, since the bound on staleness is in steps of the run."""
        return self._engine.num_steps

    def train_step(self, batch: TrajectoryBatch, probes: Sequence[GroupRollout] = ()) -> StepReport:
        """Train on a whole batch. probes: groups that the present weight version sampled, only to be compared.

        Raises LearnerError for a batch that does not fit the config, and at the parity gate.
        """
        started_s = time.perf_counter()
        other_prompts = self._prompts.judge([group.rollout for group in batch.groups], probes, self.weight_version)
        plan = plan_step(batch, PlanSettings.of(self._config, self._config.learner.num_ranks), self._rank)
        step_version = self.weight_version
        outcome = self._updater.update(plan, probes)
        metrics = {
            **outcome.metrics,
            **_staleness(batch, step_version),
            "grad_norm": sum(update.grad_norm for update in outcome.updates) / len(outcome.updates),
            "lr": outcome.updates[-1].lr,
        }
        skipped = self._note_skipped(outcome.updates, metrics["loss"], batch.step)
        duration_s = time.perf_counter() - started_s
        num_passed = plan.num_tokens * self._config.learner.updates_per_batch
        metrics |= {"skipped_steps": float(self._num_skipped), "tokens_per_s": num_passed / duration_s}
        has_learned = any(update.applied for update in outcome.updates)
        notes = "; ".join(note for note in (other_prompts, outcome.note) if note is not None)
        return StepReport(self.weight_version, metrics, skipped, notes or None, has_learned)

    def _note_skipped(self, updates: Sequence[StepInfo], loss: float, step: int) -> str | None:
        num_skipped = sum(not update.applied for update in updates)
        if not num_skipped:
            return None
        reason = "non-finite gradient" if math.isfinite(loss) else "non-finite loss"
        self._num_skipped += num_skipped
        if self._rank == 0:
            logger.warning(
                "step %d: %s; %d of %d updates skipped, the weights stay as they were",
                step, reason, num_skipped, len(updates),
            )  # fmt: skip
        return reason

    def export_weights(self, version: int) -> Iterator[WeightBucket]:
        """The parameters that training changes, or the adapters of LoRA, in buckets. Collective: every rank must
        exhaust the iterator; only rank 0 yields buckets.

        Raises LearnerError when `version` is not the present weight version.
        """
        self._check_version(version)
        return export_buckets(self._engine, self._policy, self._config.weight_sync.bucket_mb)

    def _check_version(self, version: int) -> None:
        if version != self.weight_version:
            raise LearnerError(f"weight version {version} was asked for; the learner is at {self.weight_version}")

    def weight_layout(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of the tensors that `send_collective` broadcasts, in the same order."""
        return weight_layout(self._engine, self._policy)

    def join_collective(self, place: GroupPlace) -> None:
        """Form a weight-transfer group with the engines' workers, replacing an earlier one; only rank 0 joins.

        Raises WeightSyncError when the group cannot be formed.
        """
        if self._rank == 0:
            self.abort_collective()
            device = _with_index(self._device)
            if place.transport == "ipc" and self._lent is None:
                self._lent = LentMemory(device)
            self._group = WeightGroup(place, device, self._lent)
            self._group.meet()

    def send_collective(self, version: int, bucket_bytes: int) -> None:
        """Broadcast what `export_weights` exports to the group. Collective: every rank calls it.

        Raises LearnerError, and WeightSyncError when the group has failed; it is of no more use then.
        """
        self._check_version(version)
        tensors = export_tensors(self._engine, self._policy)
        try:
            if self._rank == 0:
                if self._group is None:
                    raise WeightSyncError("the learner is in no weight-transfer group")
                self._group.send(tensors, self.weight_layout(), bucket_bytes)
        finally:
            for _ in tensors:  # gathering ZeRO-3's partitions is collective, whatever becomes of the broadcast
                pass

    def abort_collective(self) -> None:
        """Break off a broadcast, and leave the group. In any thread."""
        if self._group is not None:
            self._group.abort()

    def offload(self) -> None:
        """Give the device's memory for the optimizer to others until `reload`. Weights and reference stay, so that
        weights can be exported and snapshots taken meanwhile; batches cannot be trained on. Raises LearnerError."""
        self._engine.offload_optimizer()

    def reload(self) -> None:
        """Take it back. Both may be called again."""
        self._engine.reload_optimizer()

    def take_snapshot(self, step: int) -> None:
        """Copy into host memory what resuming after `step` steps needs, and the policy. Collective.

        Raises LearnerError when the learner is at another step, CheckpointError while the last one is being written.
        """
        self._check_version(step)
        self._snapshot.take({"num_skipped": self._num_skipped})

    def write_snapshot(self, state_directory: Path, model_directory: Path) -> None:
        """Write what `take_snapshot` has copied: not collective, and in any thread, while the next steps are made.

        Raises CheckpointError.
        """
        self._snapshot.write(state_directory, model_directory)

    def load_checkpoint(self, directory: Path) -> int:
        """Resume from the state of `write_snapshot`; returns the number of steps made. Raises LearnerError."""
        self._num_skipped = load_checkpoint(self._engine, directory)["num_skipped"]
        return self.weight_version

    def close(self) -> None:
        """Free optimizer and process groups."""
        self.abort_collective()
        if self._lent is not None:
            self._lent.close()
        if isinstance(reference := self._updater.reference, ShardedModule):
            reference.destroy()
        self._engine.destroy()
        close_distributed()


def _device(config: RunConfig) -> torch.device:
    return torch.device("cuda" if config.learner.gpus_per_rank > 0 else "cpu")


def _with_index(device: torch.device) -> torch.device:
    return device if device.type == "cpu" else torch.device(device.type, torch.cuda.current_device())


def _dtype(config: RunConfig) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, config.model.dtype)
    return dtype


def _load_policy(config: RunConfig, model_path: str, janus: JanusForConditionalGeneration | None = None) -> JanusPolicy:
    return JanusPolicy.load(
        model_path,
        _dtype(config),
        logprob_chunk_bytes=config.learner.logprob_chunk_mb * 2**20,
        revision=config.model.revision,
        trainable=config.learner.trainable,
        lora=config.learner.lora,
        janus=janus,
    )


def _load_reference(config: RunConfig, model_path: str) -> JanusPolicy | ShardedModule | None:
    """The policy as it was before training, where it is not to be sharded on the CPU; None where adapters leave it in
    place, or no token has a KL."""
    if not config.algorithm.needs_reference or config.learner.lora is not None:
        return None
    policy, how = _load_policy(config, model_path).requires_grad_(False), config.learner.reference
    if how == "whole":
        return policy
    return ShardedModule(policy, dtype=_dtype(config), device=_device(config), offload=how == "offloaded")


def _staleness(batch: TrajectoryBatch, version: int) -> dict[str, float]:
    """Staleness of the batch's trajectories: how many weight versions the policy has moved on since their oldest token
    was sampled. Mean, maximum, and the share of trajectories at each value."""
    lags = [
        version - trajectory.oldest_weight_version
        for group in batch.groups
        for trajectory in group.rollout.trajectories
    ]
    shares = {f"staleness/share_{lag}": lags.count(lag) / len(lags) for lag in sorted(set(lags))}
    return {"staleness/mean": sum(lags) / len(lags), "staleness/max": float(max(lags)), **shares}
