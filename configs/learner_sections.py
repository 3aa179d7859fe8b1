"""The sections of the config that say how the policy learns, and how its weights travel.

`configs.schema` holds the whole; import from there.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.model_sections import MAX_WORKERS, EnvironmentVariables, NodeLabels, Section

LANGUAGE_MODEL = ("model.language_model.*", "lm_head.*")
"""The parameters that T2I-R1 trains."""
LEAST_LORA_LR = 1e-5
"""Of a learning rate times alpha / rank, below which adapters hardly learn: ten times the 1e-6 that is usual without
them, as verl's page on LoRA advises (its example takes 3e-5) and "LoRA Without Regret" found (Thinking Machines Lab,
2025)."""


class LoraConfig(Section):
    """Low-rank adapters beside the language model's linear layers, which then are all that trains."""

    rank: int = Field(32, ge=1, le=2**15, description="inner width of an adapter")
    alpha: float = Field(32.0, gt=0, description="the adapter's product is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers that get an adapter",
    )

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / self.rank


class LearnerConfig(Section):
    """DeepSpeed ranks and the optimizer (AdamW)."""

    num_ranks: int = Field(1, ge=1, le=MAX_WORKERS, description="learner processes")
    cpus_per_rank: float = Field(1.0, ge=0, le=4096, description="logical CPUs that Ray reserves for each")
    gpus_per_rank: float = Field(0.0, ge=0, le=1, description="share of a GPU that Ray reserves for each; 0: on CPU")
    threads_per_rank: int | None = Field(None, ge=1, le=4096, description="OpenMP threads; null: 1 on CPU")
    env_vars: EnvironmentVariables = Field(
        default_factory=dict,
        description="of its processes, such as NCCL_SOCKET_IFNAME or HF_HOME; before bicot's own",
    )
    node_labels: NodeLabels = Field(default_factory=dict, description="that a Ray node must have to be given one")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="what DeepSpeed shards over the ranks: nothing, optimizer state, gradients too, parameters too"
    )
    trainable: tuple[str, ...] = Field(
        LANGUAGE_MODEL,
        min_length=1,
        description="parameters that train: names of the Hugging Face checkpoint, with * and ? as wildcards; of the "
        "language model, lm_head, generation_embeddings, generation_aligner and generation_head",
    )
    lora: LoraConfig | None = Field(None, description="train adapters; the base is the reference, not a second copy")
    reference: Literal["whole", "sharded", "offloaded"] = Field(
        "whole",
        description="the policy as it was at the start, for the KL. whole: on each rank, sharing what is frozen with "
        "the policy; sharded: over the ranks, gathered in each pass; offloaded: sharded, and kept in host memory",
    )
    micro_batch_size: int = Field(8, ge=1, description="trajectories a forward pass on one rank")
    mini_batches: int = Field(1, ge=1, description="parts of a step's groups, each with an optimizer update of its own")
    updates_per_batch: int = Field(
        1,
        ge=1,
        le=1000,
        description="times a step's batch is gone through; its weight version is the one after the last",
    )
    lr: float = Field(1e-6, gt=0, le=1, description="learning rate after warm-up")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="of AdamW"
    )
    weight_decay: float = Field(0.0, ge=0, le=100, description="of AdamW")
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after warm-up, down to 0")
    max_grad_norm: float = Field(1.0, gt=0, description="L2 norm that gradients are clipped to")
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, about a third more computation"
    )
    logprob_chunk_mb: int = Field(
        128,
        ge=1,
        le=2**20,
        description="MiB that logits may take at once: a vocabulary is gone through in pieces that fit, for all "
        "positions of a micro-batch; small pieces leave a GPU idle",
    )

    @model_validator(mode="after")
    def _check(self) -> LearnerConfig:
        if self.lora is not None and self.trainable != LANGUAGE_MODEL:
            raise ValueError(
                f"lora trains adapters alone, but trainable is {list(self.trainable)}; leave one of the two out"
            )
        if self.lora is not None and self.reference != "whole":
            raise ValueError(
                f"reference is {self.reference}, but with lora the frozen base is the reference; leave one of them out"
            )
        if self.reference == "sharded" and self.num_ranks == 1:
            raise ValueError("reference sharded needs ranks to shard it over, and num_ranks is 1; set it to offloaded")
        return self

    @property
    def optimizer_updates_per_step(self) -> int:
        """Optimizer updates between two weight versions."""
        return self.mini_batches * self.updates_per_batch


class ParityConfig(Section):
    """The parity gate: engines and learner must give a token the same log-probability under the same weights, and
    sample as the config says.

    In every step the learner compares what its first pass over a batch finds with what engines recorded, for tokens
    that its own weight version sampled. The first two versions that are compared end the run when they differ; later
    differences are noted.
    """

    max_abs: float | None = Field(
        None,
        gt=0,
        description="largest mean |difference| of a worker's log-probabilities in a phase, in nats. null: 1e-3 in "
        "float32, and 2w - 1 times as much for the image tokens of a guided policy, since guidance magnifies rounding "
        "so much; in bfloat16 four times the learner's own rounding noise, measured at the first step (0.2 where "
        "it cannot be)",
    )
    max_sampling_error: float = Field(
        0.05,
        gt=0,
        description="largest share by which the temperature and the guidance scale that the sampled tokens show may "
        "differ from the config's",
    )
    every_steps: int = Field(
        20, ge=1, description="steps between two looks at how tokens were sampled, and between two notes"
    )

    def limit(self, dtype: str, magnification: float = 1.0) -> float:
        """`max_abs`, or what it is by default for a model of `dtype` whose rounding is magnified."""
        if self.max_abs is not None:
            return self.max_abs
        return magnification * (1e-3 if dtype == "float32" else 0.2)


class WeightSyncConfig(Section):
    """How new weights reach the rollout workers."""

    backend: Literal["object_store", "nccl", "ipc", "auto"] = Field(
        "object_store",
        description="object_store: workers pull them through Ray, anywhere; nccl: broadcast between GPUs; ipc: vLLM "
        "workers on the learner's node open its memory, on a GPU by CUDA IPC; both have the store to fall back on; "
        "auto: nccl where learner and vLLM rollout workers have whole GPUs, ipc where they share some, else "
        "object_store",
    )
    staged: bool = Field(
        True,
        description="the vLLM engine: load new weights beside the old ones while sampling goes on, "
        "and pause only to swap them; false where a node's memory holds no second copy of them",
    )
    bucket_mb: int = Field(64, ge=1, le=2**16, description="size of the pieces in which weights travel")
    timeout_s: float = Field(300.0, gt=0, description="how long one transfer may take")
    delta: bool = Field(
        False,
        description="object_store: send what a step has changed; takes one more copy of the trained weights in the "
        "host's memory of learner rank 0 and of each rollout worker",
    )

    @model_validator(mode="after")
    def _delta_has_a_carrier(self) -> Self:
        if self.delta and self.backend != "object_store":
            raise ValueError(
                f"delta: true needs backend: object_store, not {self.backend}: a broadcast sends all weights to all"
            )
        return self
