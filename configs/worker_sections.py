"""The sections of the config that say what rolls out and what scores: rollout workers and rewards.

`configs.schema` holds the whole; import from there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from configs.algorithm_section import RewardNormalization
from configs.model_sections import MAX_WORKERS, EnvironmentVariables, NodeLabels, Section

_REWARD_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d][\w.]*)?")
RUNTIME_ENV_KEYS = ("pip", "uv", "conda", "py_modules", "py_executable", "working_dir", "image_uri", "env_vars")


class PoolSize(Section):
    """How many workers a pool has: it starts with `min`, and grows and shrinks between the two by its load."""

    min: int = Field(..., ge=1, le=MAX_WORKERS)
    max: int = Field(..., ge=1, le=MAX_WORKERS)

    @model_validator(mode="after")
    def _check(self) -> PoolSize:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}; swap them, or write one number")
        return self

    @property
    def is_elastic(self) -> bool:
        return self.max > self.min


def _size_from_number(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value < 1:
        raise ValueError("Input should be greater than or equal to 1")
    return PoolSize(min=value, max=value)


def _size_as_written(size: PoolSize) -> int | dict[str, int]:
    return {"min": size.min, "max": size.max} if size.is_elastic else size.min


Size = Annotated[PoolSize, BeforeValidator(_size_from_number), PlainSerializer(_size_as_written)]
"""A `PoolSize`; a plain number stands for a pool of fixed size."""


_ELSEWHERE = {
    "dtype": "model.dtype",
    "revision": "model.revision",
    "max_num_seqs": "rollout.max_num_seqs",
    "gpu_memory_utilization": "rollout.gpu_memory_utilization",
    "kv_cache_memory_bytes": "rollout.kv_cache_gib",
    "tensor_parallel_size": "rollout.tensor_parallel_size",
    "enforce_eager": "rollout.enforce_eager",
    "enable_sleep_mode": "rollout.colocate",
    "async_scheduling": "run.deterministic",
    "max_model_len": "rollout.max_prompt_tokens and rollout.max_cot_tokens",
}
"""Arguments of vLLM that other fields of the config decide."""
_INEXACT = {
    "quantization": "the learner computes with weights that are not rounded, so its log-probabilities would be others",
    "speculative_config": "draft tokens are accepted by vLLM's own sampler, which knows no guidance",
    "logits_processors": "what they change would be missing in the log-probabilities that the learner computes",
    "logprobs_mode": "the loss needs the conditional log-probability, or the guided one that algorithm.policy asks for",
    "hf_overrides": "bicot's own gives the model its streams",
    "worker_cls": "bicot's own samples with guidance",
    "seed": "every token's chance comes from the seed of its group",
    "enable_lora": "learner.lora brings its adapters by itself, and vLLM's way to add them rounds small changes away",
}
"""Arguments of vLLM that would break what bicot promises of a token and its log-probability."""


class VllmOptions(Section):
    """Arguments of vLLM's engine, by vLLM's names and handed to it as they are. null: vLLM's own, or bicot's."""

    block_size: int | None = Field(
        None, ge=1, le=4096, description="tokens a block of the KV cache; null: 32 on a CPU, vLLM's own on a GPU"
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=1, le=2**20, description="tokens a step; null: 8192, or more where one sequence is longer"
    )
    enable_chunked_prefill: bool | None = Field(
        None, description="null: true; prompts are read in parts, beside others"
    )
    enable_prefix_caching: bool | None = Field(None, description="null: true; one prompt's KV serves its whole group")
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] | None = Field(
        None, description="fp8 halves the KV cache and rounds it; needs an algorithm.mismatch_correction"
    )
    attention_backend: str | None = Field(None, min_length=1, description="name of an attention kernel of vLLM's")
    compilation_config: dict[str, Any] | None = Field(None, description="see vLLM's CompilationConfig")
    disable_custom_all_reduce: bool | None = Field(None, description="NCCL's in place of vLLM's own, across GPUs")

    @model_validator(mode="before")
    @classmethod
    def _others_are_refused_with_the_reason(cls, value: Any) -> Any:
        for name in value if isinstance(value, Mapping) else ():
            if name in _ELSEWHERE:
                raise ValueError(f"{name} is decided by {_ELSEWHERE[name]}; set that, and remove it here")
            if name in _INEXACT:
                raise ValueError(f"{name} would break the exactness of a run: {_INEXACT[name]}; remove it")
        return value

    @property
    def arguments(self) -> dict[str, Any]:
        """Those that are set."""
        return self.model_dump(exclude_none=True)

    @property
    def rounds_kv_cache(self) -> bool:
        """Whether keys and values are kept in fewer bits than they were computed in."""
        return self.kv_cache_dtype not in (None, "auto")


class RolloutConfig(Section):
    """Rollout workers: how many, on what, and how they sample."""

    engine: Literal["vllm", "transformers"] = Field("vllm", description="'transformers' is the slow twin for checks")
    num_workers: Size = Field(PoolSize(min=1, max=1), description="a number, or {min, max} for an elastic pool")
    cpus_per_worker: float = Field(1.0, ge=0, le=4096, description="logical CPUs that Ray reserves for each")
    gpus_per_worker: float = Field(
        0.0, ge=0, le=1024, description="0: on CPU; must equal tensor_parallel_size when above 1"
    )
    tensor_parallel_size: int = Field(1, ge=1, le=1024, description="GPUs over which one engine splits the model")
    threads_per_worker: int | None = Field(None, ge=1, le=4096, description="OpenMP threads; null: 1 on a CPU")
    env_vars: EnvironmentVariables = Field(
        default_factory=dict,
        description="of its processes, such as NCCL_SOCKET_IFNAME or HF_HOME; before bicot's own",
    )
    node_labels: NodeLabels = Field(default_factory=dict, description="that a Ray node must have to be given one")
    max_prompt_tokens: int = Field(256, ge=4, description="longer prompts are skipped, by name")
    max_cot_tokens: int = Field(128, ge=1, description="a semantic CoT is cut after so many tokens")
    guidance_scale: float = Field(5.0, ge=1.0, le=1000, description="w in u + w(c - u); 1 is no guidance")
    temperature: float = Field(1.0, ge=0.01, le=100, description="of sampling, for plan and picture")
    cot_top_k: int | None = Field(
        None,
        ge=1,
        description="CoT tokens are sampled among so many likeliest ones; null: among all. The ratio's "
        "log-probabilities stay those of the whole vocabulary, as in T2I-R1, which samples among 50",
    )
    max_num_seqs: int = Field(128, ge=1, description="sequences that the engine runs at once")
    max_groups_per_worker: int = Field(16, ge=1, description="groups that one worker is given at once")
    decode_batch_size: int = Field(
        16, ge=1, description="pictures a pass of the VQ decoder at most; halved where they do not fit the free memory"
    )
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="share of its GPU's memory the engine takes")
    kv_cache_gib: float | None = Field(
        None, gt=0, le=2**20, description="KV cache; null: 1 on a CPU, on a GPU what gpu_memory_utilization leaves"
    )
    enforce_eager: bool = Field(False, description="no graphs, no compilation: slower steps on a GPU, not on a CPU")
    colocate: bool = Field(
        False, description="engine i takes turns with learner rank i on one GPU, and sleeps while the learner learns"
    )
    recompute_on_swap: bool = Field(
        True,
        description="compute the keys and values of running sequences again under new weights; false: the vLLM engine "
        "keeps them, which saves the prefill, and tokens after a swap are sampled with a stale context",
    )
    model_runner: Literal["first", "second"] = Field("first", description="of vLLM's two; the newer one needs a GPU")
    vllm: VllmOptions = Field(VllmOptions(), description="further arguments of vLLM's engine")
    max_attempts: int = Field(4, ge=1, description="times a group is rolled before its prompt is given up")
    group_timeout_s: float = Field(
        600.0,
        gt=0,
        description="a group that takes longer counts as failed, and a worker that answers none so long as hanging",
    )
    system_prompt: str | None = Field(
        None, description="of the semantic prompt; null: the one stored with the checkpoint, or bicot's"
    )
    instruction: str | None = Field(
        None,
        description="of the semantic prompt, with {prompt} in it; null: the one stored with the checkpoint, or bicot's",
    )
    roles: tuple[str, str] | None = Field(
        None,
        description="user and assistant in the chat template; null: the ones stored with the checkpoint, or its "
        "template's own. T2I-R1 was trained with [User, Assistant]",
    )
    image_prompt: Literal["tidy", "verbatim"] | None = Field(
        None,
        description="how prompt and CoT become the picture's prompt: tidy, with one full stop and one space between, "
        "or joined verbatim by both, as in T2I-R1's code; null: as stored with the checkpoint, or tidy",
    )

    @property
    def kv_cache_bytes(self) -> int | None:
        """Of an engine; None where `gpu_memory_utilization` decides."""
        gib = 1.0 if self.kv_cache_gib is None and self.gpus_per_worker == 0 else self.kv_cache_gib
        return None if gib is None else int(gib * 2**30)

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
        if self.gpus_per_worker == 0 and self.vllm.block_size is not None and self.vllm.block_size % 32:
            raise ValueError(
                f"vllm.block_size {self.vllm.block_size} is no multiple of 32, as attention on a CPU needs"
            )
        return self


def _not_finite_in(node: Any, place: str = "") -> str:
    """The place of the first NaN or infinity in plain data, as `key.key`; empty when there is none."""
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        children = node.items()
    elif isinstance(node, list | tuple):
        children = enumerate(node)
    elif isinstance(node, float) and not math.isfinite(node):
        return place
    found = (_not_finite_in(child, f"{place}.{key}" if place else str(key)) for key, child in children)
    return next(filter(None, found), "")


class RewardConfig(Section):
    """One reward of the ensemble and the pool of actors that computes it."""

    name: str = Field(
        ..., min_length=1, description="a registered reward, or your own: module:Class or module:function"
    )
    kind: str | None = Field(
        None,
        min_length=1,
        description="the same, where the name is one of your choice: two judges may ask two questions. null: the name",
    )
    weight: float = Field(
        1.0,
        ge=-1e6,
        le=1e6,
        description="factor in the weighted sum; below 0 it is a penalty, 0 scores to watch and trains nothing",
    )
    phase: Literal["both", "cot", "image"] = Field(
        "both", description="whose tokens it trains: the plan's (cot), the picture's, or both"
    )
    evaluation_only: bool = Field(False, description="scores evaluations and no training group; trains nothing")
    normalization: RewardNormalization | None = Field(
        None,
        description="before it is weighted: none takes it as it is, group its distance from its mean within the group, "
        "in units of its spread there. null: algorithm.reward_normalization",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the reward's class")
    replicas: Size = Field(PoolSize(min=1, max=1), description="a number, or {min, max} for an elastic pool")
    cpus_per_replica: float = Field(1.0, ge=0, le=4096, description="logical CPUs that Ray reserves for each")
    gpus_per_replica: float = Field(
        0.0, ge=0, le=1024, description="share of a GPU that Ray reserves for each; 0: on CPU"
    )
    node_labels: NodeLabels = Field(default_factory=dict, description="that a Ray node must have to be given one")
    batch_size: int = Field(32, ge=1, description="pictures a call, across groups")
    max_wait_ms: float = Field(5.0, ge=0, le=3.6e6, description="how long a picture waits for others to fill the batch")
    timeout_s: float = Field(120.0, gt=0, description="how long a batch may take; then its replica is replaced")
    retries: int = Field(1, ge=0, description="further tries at a batch before its groups fail")
    cache: bool = Field(
        False, description="keep scores in the registry's Redis, by content; only for a reward without chance in it"
    )
    runtime_env: dict[str, Any] = Field(
        default_factory=dict,
        description="of its replicas, as Ray has it: pip, uv or conda for packages that clash with the run's, env_vars",
    )

    @property
    def implementation(self) -> str:
        """What computes it: the name of a registered reward, module:Class or module:function."""
        return self.kind or self.name

    @property
    def trains(self) -> bool:
        """Whether it has a say in the combined reward."""
        return self.weight != 0 and not self.evaluation_only

    @field_validator("name", "kind")
    @classmethod
    def _name_is_one_or_a_path(cls, value: str | None) -> str | None:
        if value is not None and not _REWARD_NAME.fullmatch(value):
            raise ValueError("expected the name of a reward, or module:Class or module:function for your own")
        return value

    @field_validator("options", "runtime_env")
    @classmethod
    def _numbers_are_finite(cls, value: dict[str, Any]) -> dict[str, Any]:
        if place := _not_finite_in(value):
            raise ValueError(f"{place} is not a finite number; write one, or leave it out")
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half a character (a lone surrogate), which no file can hold; remove it") from error
        return value

    @field_validator("runtime_env")
    @classmethod
    def _runtime_env_is_known(cls, value: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(value) - set(RUNTIME_ENV_KEYS)):
            raise ValueError(f"'{unknown[0]}' is no part of a runtime_env; use {', '.join(RUNTIME_ENV_KEYS)}")
        variables = value.get("env_vars", {})
        if not isinstance(variables, dict) or not all(isinstance(text, str) for text in variables.values()):
            raise ValueError("env_vars must be a mapping from names to strings; quote numbers")
        return value
