"""The config of a run, as one frozen pydantic tree.

A YAML file (see `configs/*.yaml`) is parsed into `RunConfig` by `configs.load`. Every check that
needs no cluster is made here, so that a wrong config is refused before any process starts; each
message says which field, which value, and what to do. Nothing is ever rescaled silently.

Units are in the names: `_s` seconds, `_ms` milliseconds, `_mb` 2**20 bytes, `_gib` 2**30 bytes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

# Re-exported: this module is where the whole config is imported from.
from configs.model_sections import TINY_JANUS as TINY_JANUS
from configs.model_sections import ModelConfig as ModelConfig
from configs.model_sections import Section as Section
from configs.model_sections import TinyJanusConfig as TinyJanusConfig
from configs.model_sections import VQTrainingConfig as VQTrainingConfig
from configs.model_sections import WarmStartConfig as WarmStartConfig


class RunSection(Section):
    """Name, place, length and seed of the run."""

    name: str = Field("shapes_cpu", min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dir: str = Field("runs", description="the run directory is DIR/NAME")
    cache_dir: str = Field("~/.cache/bicot", description="warm-started models are kept here, by content")
    seed: int = Field(0, ge=0, description="decides prompts' order and every trajectory's tokens")
    steps: int = Field(100, ge=1, description="optimizer steps")
    start_timeout_s: float = Field(600.0, gt=0, description="how long all actors together may take to start")
    step_timeout_s: float = Field(1800.0, gt=0, description="how long one step may wait for its groups")


class DataConfig(Section):
    """Where prompts come from: a .jsonl/.json/.csv/.parquet/.txt file, or `shapes:SPLIT`."""

    train: str = Field(..., min_length=1)
    evaluation: dict[str, str] = Field(
        default_factory=dict, description="name -> source; each is scored before and after training"
    )
    num_evaluation_prompts: int = Field(192, ge=1, description="at most so many prompts of each evaluation source")
    shuffle: bool = True
    max_bad_lines: int = Field(100, ge=0, description="more bad lines than this end the run before it starts")


class AlgorithmConfig(Section):
    """BiCoT-GRPO (T2I-R1, section 3); DESIGN of each field in ARCHITECTURE.md."""

    groups_per_step: int = Field(16, ge=1, description="prompts an optimizer step")
    group_size: int = Field(8, description="G: trajectories a prompt")
    images_per_cot: int = Field(1, ge=1, description="pictures drawn from each semantic CoT; divides group_size")
    kl_coef: float = Field(0.01, ge=0, description="beta, weight of the k3 KL to the reference policy")
    advantage_epsilon: float = Field(1e-4, gt=0)
    clip_ratio_low: float | None = Field(
        None, gt=0, lt=1, description="PPO clip below 1; null: no clipping (the paper)"
    )
    clip_ratio_high: float | None = Field(None, gt=0, description="PPO clip above 1; null: no clipping (the paper)")
    max_staleness: int = Field(1, ge=0, description="optimizer steps a trajectory may lag; 0 is synchronous")

    @model_validator(mode="after")
    def _check(self) -> AlgorithmConfig:
        if self.group_size < 2:
            raise ValueError(
                f"group_size {self.group_size}: an advantage needs at least two trajectories to compare; set 2 or more"
            )
        if self.group_size % self.images_per_cot:
            raise ValueError(
                f"group_size {self.group_size} is not a multiple of images_per_cot {self.images_per_cot}; change either"
            )
        return self

    @property
    def trajectories_per_step(self) -> int:
        return self.groups_per_step * self.group_size


class RolloutConfig(Section):
    """Rollout workers: how many, on what, and how they sample."""

    engine: Literal["vllm", "transformers"] = Field("vllm", description="'transformers' is the slow twin for checks")
    num_workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1.0, ge=0)
    gpus_per_worker: float = Field(0.0, ge=0, description="0: on CPU; must equal tensor_parallel_size when above 1")
    tensor_parallel_size: int = Field(1, ge=1)
    threads_per_worker: int | None = Field(None, ge=1, description="OpenMP threads of the engine; null: 1 on CPU")
    max_prompt_tokens: int = Field(256, ge=4, description="longer prompts are skipped, by name")
    max_cot_tokens: int = Field(128, ge=1)
    guidance_scale: float = Field(5.0, ge=1.0, description="w in u + w(c - u); 1 is no guidance")
    temperature: float = Field(1.0, gt=0)
    max_num_seqs: int = Field(128, ge=1, description="sequences that the engine runs at once")
    max_groups_per_worker: int = Field(16, ge=1, description="groups that one worker is given at once")
    decode_batch_size: int = Field(64, ge=1, description="pictures a call of the VQ decoder")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="share of its GPU's memory the engine takes")
    kv_cache_gib: float = Field(1.0, gt=0, description="KV cache of an engine on CPU")
    enforce_eager: bool = Field(False, description="no graph capture, no compilation: slower steps, quicker start")
    max_attempts: int = Field(4, ge=1, description="times a group is rolled before its prompt is given up")
    group_timeout_s: float = Field(600.0, gt=0, description="a group that takes longer counts as failed")
    system_prompt: str | None = Field(None, description="of the semantic prompt; null: the model's own, see README")
    instruction: str | None = Field(
        None, description="of the semantic prompt, with {prompt} in it; null: the model's own"
    )

    @field_validator("instruction")
    @classmethod
    def _instruction_holds_prompt(cls, value: str | None) -> str | None:
        if value is not None and "{prompt}" not in value:
            raise ValueError("the instruction must hold the placeholder {prompt}")
        return value

    @model_validator(mode="after")
    def _check(self) -> RolloutConfig:
        if self.gpus_per_worker > 1 and self.gpus_per_worker != self.tensor_parallel_size:
            raise ValueError(
                f"gpus_per_worker {self.gpus_per_worker} differs from tensor_parallel_size "
                f"{self.tensor_parallel_size}; an engine uses one GPU a tensor-parallel rank, set them equal"
            )
        if self.tensor_parallel_size > 1 and self.gpus_per_worker < self.tensor_parallel_size:
            raise ValueError(
                f"tensor_parallel_size {self.tensor_parallel_size} needs as many GPUs; "
                f"set gpus_per_worker to {self.tensor_parallel_size} (it is {self.gpus_per_worker})"
            )
        return self


class RewardConfig(Section):
    """One reward of the ensemble and the pool of actors that computes it."""

    name: str = Field(..., min_length=1, description="a registered reward, or module:Class")
    weight: float = Field(1.0, description="factor in the weighted sum")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the reward's class")
    replicas: int = Field(1, ge=1)
    cpus_per_replica: float = Field(1.0, ge=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    batch_size: int = Field(32, ge=1, description="pictures a call, across groups")
    max_wait_ms: float = Field(5.0, ge=0, description="how long a picture waits for others to fill the batch")
    timeout_s: float = Field(120.0, gt=0)
    retries: int = Field(1, ge=0, description="further tries at a batch before its groups fail")


class LearnerConfig(Section):
    """DeepSpeed ranks and the optimizer (AdamW)."""

    num_ranks: int = Field(1, ge=1)
    cpus_per_rank: float = Field(1.0, ge=0)
    gpus_per_rank: float = Field(0.0, ge=0, le=1)
    threads_per_rank: int | None = Field(None, ge=1, description="OpenMP threads; null: 1 on CPU")
    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_batch_size: int = Field(8, ge=1, description="trajectories a forward pass on one rank")
    lr: float = Field(1e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after warm-up, down to 0")
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False
    logprob_chunk_tokens: int = Field(1024, ge=1, description="positions whose logits are held at once")


class WeightSyncConfig(Section):
    """How new weights reach the rollout workers."""

    backend: Literal["object_store", "nccl"] = "object_store"
    bucket_mb: int = Field(64, ge=1)
    timeout_s: float = Field(300.0, gt=0)


class QueueConfig(Section):
    """The bounded trajectory queue between rewards and learner."""

    max_groups: int | None = Field(None, ge=1, description="null: (max_staleness + 1) x groups_per_step")


class RegistryConfig(Section):
    """Redis: the run's registry."""

    redis_url: str | None = Field(None, description="redis://, rediss:// or unix://; null starts a private server")
    redis_port: int = Field(0, ge=0, le=65535, description="of the private server; 0 takes a free one")


class CheckpointConfig(Section):
    """What is kept for resuming and for use."""

    every_steps: int = Field(50, ge=1)
    keep_last: int = Field(2, ge=1)


class SamplesConfig(Section):
    """Pictures for people."""

    every_steps: int = Field(10, ge=1)
    num_pictures: int = Field(16, ge=1)


class ClusterConfig(Section):
    """The Ray cluster."""

    address: str | None = Field(None, description="null: the job's cluster, or a local Ray; 'auto' or host:port")
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a local Ray; null: what the plan needs")
    dashboard: bool = Field(False, description="start the Ray dashboard with a local Ray")
    autoscaling: bool = Field(False, description="the cluster adds nodes on demand: wait for what does not fit yet")


class RunConfig(Section):
    """Everything one run is told."""

    run: RunSection = RunSection()
    model: ModelConfig
    data: DataConfig
    warm_start: WarmStartConfig | None = None
    algorithm: AlgorithmConfig = AlgorithmConfig()
    rollout: RolloutConfig = RolloutConfig()
    rewards: tuple[RewardConfig, ...]
    learner: LearnerConfig = LearnerConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    queue: QueueConfig = QueueConfig()
    registry: RegistryConfig = RegistryConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("rewards")
    @classmethod
    def _rewards_are_named_once(cls, value: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        if not value:
            raise ValueError("no reward is set; list at least one")
        names = [reward.name for reward in value]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is listed twice; list each reward once")
        return value

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        for check in (self._check_batches, self._check_queue, self._check_precision, self._check_weights):
            check()
        return self

    def _check_batches(self) -> None:
        algorithm, learner = self.algorithm, self.learner
        unit = learner.num_ranks * learner.micro_batch_size
        if algorithm.trajectories_per_step % unit:
            raise ValueError(
                f"algorithm.groups_per_step {algorithm.groups_per_step} x algorithm.group_size {algorithm.group_size} "
                f"= {algorithm.trajectories_per_step} trajectories do not divide by learner.num_ranks "
                f"{learner.num_ranks} x learner.micro_batch_size {learner.micro_batch_size} = {unit}; change one"
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
        if self.model.path == TINY_JANUS and self.warm_start is None:
            raise ValueError(
                f"model.path '{TINY_JANUS}' has random weights; add a warm_start section, "
                "or set model.path to a trained model"
            )
        whole_gpus = self.rollout.gpus_per_worker >= 1 and self.learner.gpus_per_rank >= 1
        if self.weight_sync.backend == "nccl" and not (whole_gpus and self.rollout.engine == "vllm"):
            raise ValueError(
                "weight_sync.backend nccl needs learner and vLLM rollout workers on whole GPUs of their own; set "
                "learner.gpus_per_rank and rollout.gpus_per_worker to 1 or more and rollout.engine to vllm, or "
                "weight_sync.backend to object_store"
            )

    @property
    def max_queued_groups(self) -> int:
        """Bound of the trajectory queue; by default all groups that admission lets through."""
        if self.queue.max_groups is not None:
            return self.queue.max_groups
        return (self.algorithm.max_staleness + 1) * self.algorithm.groups_per_step
