"""The config of a run, as one frozen pydantic tree.

A YAML file (see `configs/*.yaml`) is parsed into `RunConfig` by `configs.load`. Every check that
needs no cluster is made here, so that a wrong config is refused before any process starts; each
message says which field, which value, and what to do. Nothing is ever rescaled silently.

Units are in the names: `_s` seconds, `_ms` milliseconds, `_mb` 2**20 bytes, `_gib` 2**30 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import field_validator, model_validator

# Re-exported: this module is where the whole config is imported from.
from configs.algorithm_section import AlgorithmConfig as AlgorithmConfig
from configs.algorithm_section import Phase
from configs.learner_sections import LEAST_LORA_LR
from configs.learner_sections import LearnerConfig as LearnerConfig
from configs.learner_sections import LoraConfig as LoraConfig
from configs.learner_sections import ParityConfig as ParityConfig
from configs.learner_sections import WeightSyncConfig as WeightSyncConfig
from configs.model_sections import TINY_JANUS as TINY_JANUS
from configs.model_sections import ModelConfig as ModelConfig
from configs.model_sections import Section as Section
from configs.model_sections import TinyJanusConfig as TinyJanusConfig
from configs.model_sections import VQTrainingConfig as VQTrainingConfig
from configs.model_sections import WarmStartConfig as WarmStartConfig
from configs.run_sections import BenchmarkConfig as BenchmarkConfig
from configs.run_sections import CheckpointConfig as CheckpointConfig
from configs.run_sections import ClusterConfig as ClusterConfig
from configs.run_sections import DataConfig as DataConfig
from configs.run_sections import QueueConfig as QueueConfig
from configs.run_sections import RegistryConfig as RegistryConfig
from configs.run_sections import RunSection as RunSection
from configs.run_sections import SamplesConfig as SamplesConfig
from configs.run_sections import WatchingConfig as WatchingConfig
from configs.worker_sections import RewardConfig as RewardConfig
from configs.worker_sections import RolloutConfig as RolloutConfig
from configs.worker_sections import VllmOptions as VllmOptions


class RunConfig(Section):
    """The whole config of one run."""

    run: RunSection = RunSection()
    model: ModelConfig
    data: DataConfig
    warm_start: WarmStartConfig | None = None
    algorithm: AlgorithmConfig = AlgorithmConfig()
    rollout: RolloutConfig = RolloutConfig()
    rewards: tuple[RewardConfig, ...]
    learner: LearnerConfig = LearnerConfig()
    parity: ParityConfig = ParityConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    queue: QueueConfig = QueueConfig()
    registry: RegistryConfig = RegistryConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()
    watching: WatchingConfig = WatchingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("rewards")
    @classmethod
    def _rewards_are_named_once(cls, value: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        if not value:
            raise ValueError("no reward is set; list at least one")
        names = [reward.name for reward in value]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"{', '.join(repeated)} is listed twice; list each reward once, or give each a name of its own and "
                "what it is as kind"
            )
        if not any(reward.trains for reward in value):
            raise ValueError(
                "every reward has weight 0 or is for evaluations only, so there is nothing to learn; "
                "give one another weight"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        for check in (
            self._check_batches,
            self._check_queue,
            self._check_precision,
            self._check_weights,
            self._check_rounded_cache,
            self._check_determinism,
            self._check_phases,
            self._check_top_k,
            self._check_colocation,
        ):
            check()
        return self

    @property
    def advice(self) -> tuple[str, ...]:
        """What is allowed and hardly ever meant; said by `--dry-run`, and at the start of a run."""
        return (*self._advice_on_lora(), *self._advice_on_colocation())

    def _advice_on_colocation(self) -> tuple[str, ...]:
        if not self.rollout.colocate or self.rollout.gpus_per_worker > 0:
            return ()
        return (
            "rollout.colocate on a CPU: engines and learner take turns, and free nothing by it, as the memory of both "
            "is the host's; set it to false unless it is to be tried out",
        )

    def _advice_on_lora(self) -> tuple[str, ...]:
        learner = self.learner
        if learner.lora is None or learner.lr * learner.lora.scale > 0.99 * LEAST_LORA_LR:  # rounding is no reason
            return ()
        lr, reach = LEAST_LORA_LR / learner.lora.scale, learner.lr * self.run.steps * learner.optimizer_updates_per_step
        return (
            f"learner.lr {learner.lr:g} is too low for learner.lora: an adapter begins at 0 and AdamW moves its values "
            f"by about lr an update, so after run.steps {self.run.steps} they have reached {reach:.1g} at most, and "
            f"the policy has hardly changed; set learner.lr to between {lr:g} and {10 * lr:g}, ten times and more of "
            "what is right without adapters",
        )

    def _check_batches(self) -> None:
        algorithm, learner = self.algorithm, self.learner
        unit = learner.num_ranks * learner.micro_batch_size
        if algorithm.trajectories_per_step % unit:
            raise ValueError(
                f"algorithm.groups_per_step {algorithm.groups_per_step} x algorithm.group_size {algorithm.group_size} "
                f"= {algorithm.trajectories_per_step} trajectories do not divide by learner.num_ranks "
                f"{learner.num_ranks} x learner.micro_batch_size {learner.micro_batch_size} = {unit}; change one"
            )
        if algorithm.groups_per_step % learner.mini_batches:
            raise ValueError(
                f"algorithm.groups_per_step {algorithm.groups_per_step} do not divide into learner.mini_batches "
                f"{learner.mini_batches} of whole groups; change either"
            )
        if (algorithm.trajectories_per_step // learner.mini_batches) % unit:
            raise ValueError(
                f"a mini-batch has {algorithm.trajectories_per_step // learner.mini_batches} trajectories "
                f"(learner.mini_batches {learner.mini_batches}), which do not divide by learner.num_ranks x "
                f"learner.micro_batch_size = {unit}; lower learner.micro_batch_size or learner.mini_batches"
            )
        if self.warm_start is not None and self.warm_start.batch_size % learner.num_ranks:
            raise ValueError(
                f"warm_start.batch_size {self.warm_start.batch_size} does not divide by learner.num_ranks "
                f"{learner.num_ranks}; change either"
            )

    def _check_queue(self) -> None:
        if self.max_queued_groups < self.algorithm.groups_per_step:
            raise ValueError(
                f"queue.max_groups {self.max_queued_groups} is smaller than one batch (algorithm.groups_per_step "
                f"{self.algorithm.groups_per_step}), so no batch could ever fill; raise it, or set it to null"
            )

    def _check_precision(self) -> None:
        if self.model.dtype == "bfloat16" and self.learner.zero_stage == 0:
            raise ValueError(
                "learner.zero_stage 0 with model.dtype bfloat16 makes a hidden optimizer step in DeepSpeed; "
                "set learner.zero_stage to 1 or more, or model.dtype to float32"
            )

    def _check_weights(self) -> None:
        if self.model.tiny is not None and self.warm_start is None:
            raise ValueError(
                "model.tiny builds a model with random weights; add a warm_start section, "
                f"or remove it: without it, model.path '{TINY_JANUS}' is the trained one that comes with the project"
            )
        if not self.rollout.recompute_on_swap and self.rollout.engine != "vllm":
            raise ValueError("rollout.recompute_on_swap: false needs rollout.engine vllm; set it to true")
        if self.weight_sync.backend == "nccl" and self._best_transport != "nccl":
            raise ValueError(
                "weight_sync.backend nccl needs learner and vLLM rollout workers on whole GPUs of their own, and "
                "staged weights; set learner.gpus_per_rank and rollout.gpus_per_worker to 1 or more, rollout.engine to "
                "vllm and weight_sync.staged to true, or weight_sync.backend to auto"
            )
        if self.weight_sync.backend == "ipc" and not (self._stages_weights and self._uses_one_kind_of_device):
            raise ValueError(
                "weight_sync.backend ipc needs learner and vLLM rollout workers both on GPUs or both on CPUs, and "
                "staged weights; change learner.gpus_per_rank or rollout.gpus_per_worker, set rollout.engine to vllm "
                "and weight_sync.staged to true, or weight_sync.backend to auto"
            )

    @property
    def weight_backend(self) -> Literal["object_store", "nccl", "ipc"]:
        """How weights go to the engines."""
        backend = self.weight_sync.backend
        return (self._best_transport or "object_store") if backend == "auto" else backend

    @property
    def _best_transport(self) -> Literal["nccl", "ipc"] | None:
        """Between GPUs; None where weights cannot go from one to the other. NCCL joins no two processes on one GPU."""
        gpus = min(self.rollout.gpus_per_worker, self.learner.gpus_per_rank)
        if gpus == 0 or not self._stages_weights:
            return None
        return "nccl" if gpus >= 1 else "ipc"

    @property
    def _stages_weights(self) -> bool:
        return self.rollout.engine == "vllm" and self.weight_sync.staged

    @property
    def _uses_one_kind_of_device(self) -> bool:
        """Whether learner and rollout workers are both on GPUs, or both on CPUs."""
        return (self.rollout.gpus_per_worker > 0) == (self.learner.gpus_per_rank > 0)

    def _check_rounded_cache(self) -> None:
        if self.rollout.vllm.rounds_kv_cache and self.algorithm.mismatch_correction == "none":
            raise ValueError(
                f"rollout.vllm.kv_cache_dtype {self.rollout.vllm.kv_cache_dtype} rounds what tokens are sampled from, "
                "and the learner does not; set algorithm.mismatch_correction to tis and algorithm.old_logprobs to "
                "recompute, or remove it"
            )

    def _check_determinism(self) -> None:
        if self.run.deterministic and self.algorithm.max_staleness > 0:
            raise ValueError(
                f"run.deterministic with algorithm.max_staleness {self.algorithm.max_staleness}: the moment at which "
                "new weights reach a group that is being rolled would decide its tokens; set max_staleness to 0"
            )

    def _check_top_k(self) -> None:
        if self.rollout.cot_top_k is not None and self.algorithm.records_sampled_logprobs:
            raise ValueError(
                f"rollout.cot_top_k {self.rollout.cot_top_k} with algorithm.policy {self.algorithm.policy} and "
                f"old_logprobs {self.algorithm.old_logprobs}: engines then record log-probabilities among the "
                "likeliest tokens alone, which the learner does not compute; set rollout.cot_top_k to null"
            )

    def _check_colocation(self) -> None:
        if not self.rollout.colocate:
            return
        rollout, learner, workers = self.rollout, self.learner, self.rollout.num_workers
        if self.algorithm.max_staleness > 0:
            raise ValueError(
                f"rollout.colocate with algorithm.max_staleness {self.algorithm.max_staleness}: engines sleep while "
                "the learner learns, so nothing is drawn ahead; set max_staleness to 0"
            )
        if workers.is_elastic or workers.min != learner.num_ranks:
            size = f"{workers.min} to {workers.max}" if workers.is_elastic else f"{workers.min}"
            raise ValueError(
                f"rollout.colocate with rollout.num_workers {size} and learner.num_ranks {learner.num_ranks}: each "
                f"rank shares its place with one engine; set rollout.num_workers to {learner.num_ranks}"
            )
        if rollout.tensor_parallel_size > 1:
            raise ValueError(
                f"rollout.colocate with rollout.tensor_parallel_size {rollout.tensor_parallel_size}: an engine shares "
                "the one GPU of a learner rank; set tensor_parallel_size to 1"
            )
        gpus = (rollout.gpus_per_worker, learner.gpus_per_rank)
        if any(gpus) and (not all(gpus) or sum(gpus) > 1 + 1e-9):
            raise ValueError(
                f"rollout.colocate with rollout.gpus_per_worker {gpus[0]:g} and learner.gpus_per_rank {gpus[1]:g}: "
                "both are shares of one GPU, which they take in turns; set each to 0.5, or less where rewards are on it"
            )
        if learner.zero_stage not in (1, 2):
            raise ValueError(
                f"rollout.colocate with learner.zero_stage {learner.zero_stage}: DeepSpeed moves AdamW's state out of "
                "the way at stages 1 and 2; set zero_stage to 2, or to 1"
            )
        if rollout.node_labels != learner.node_labels:
            raise ValueError(
                f"rollout.colocate with rollout.node_labels {dict(rollout.node_labels)} and learner.node_labels "
                f"{dict(learner.node_labels)}: engine and rank are on one node; set them equal"
            )

    def _check_phases(self) -> None:
        """Every phase that is trained must be told by a reward which of its tokens were good."""
        for phase in self.algorithm.phases:
            if not any(reward.trains and reward.phase in ("both", phase) for reward in self.rewards):
                raise ValueError(
                    f"no reward trains the phase '{phase}', which algorithm.optimize {self.algorithm.optimize} trains; "
                    "set the phase of one to both, or change algorithm.optimize"
                )

    @property
    def has_rewards_of_one_phase(self) -> bool:
        """Whether some reward trains the tokens of one phase only."""
        return any(reward.trains and reward.phase != "both" for reward in self.rewards)

    @property
    def rewards_by_phase(self) -> Mapping[Phase, frozenset[str]]:
        """Phase that is trained -> names of the rewards that train its tokens."""
        return {
            phase: frozenset(
                reward.name for reward in self.rewards if reward.trains and reward.phase in ("both", phase)
            )
            for phase in self.algorithm.phases
        }

    @property
    def normalized_rewards(self) -> frozenset[str]:
        """Names of the rewards that are normalised within their group before the weighted sum."""
        default = self.algorithm.reward_normalization
        return frozenset(r.name for r in self.rewards if r.trains and (r.normalization or default) == "group")

    @property
    def max_queued_groups(self) -> int:
        """Bound of the trajectory queue; by default all groups that admission lets through."""
        if self.queue.max_groups is not None:
            return self.queue.max_groups
        return (self.algorithm.max_staleness + 1) * self.algorithm.groups_per_step
