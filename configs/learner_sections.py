"""The sections of the config that say how the policy learns, and how its weights travel.

`configs.schema` holds the whole; import from there.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.model_sections import Section


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
