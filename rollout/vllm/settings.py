"""vLLM's settings for Janus: engine arguments, context length, environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from configs.errors import ConfigError
from configs.schema import RolloutConfig
from rollout.engine import EngineSettings
from rollout.janus_checkpoint import JanusCheckpoint

_CONTEXT_MARGIN = 32
"""Tokens of context beyond the longest sequence that the config allows, where the model has them."""
_MIN_BATCHED_TOKENS = 8192
"""Prompt tokens a step; each counts once a stream in compute."""
_CPU_BLOCK_TOKENS = 32
"""Tokens a block of the KV cache, the least that vLLM's kernel for CPUs takes. With vLLM's own 128, attention and the
writing of keys take longer, and a prompt shorter than a block is never found in the prefix cache."""
MODEL_RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"
_WORKERS = {"first": "first_runner.FirstRunnerWorker", "second": "guided_worker.GuidedWorker"}


def context_length(config: RolloutConfig, checkpoint: JanusCheckpoint) -> int:
    """Tokens of context the engine keeps room for: prompt + CoT + picture, and a margin where the model has one.

    Raises ConfigError when the model has fewer positions than prompt, CoT and picture need together.
    """
    num_image_tokens, max_positions = checkpoint.num_image_tokens, checkpoint.max_positions
    needed = config.max_prompt_tokens + config.max_cot_tokens + num_image_tokens
    if needed > max_positions:
        raise ConfigError(
            f"rollout.max_prompt_tokens {config.max_prompt_tokens} + rollout.max_cot_tokens {config.max_cot_tokens} "
            f"+ {num_image_tokens} image tokens = {needed}, but the model has {max_positions} positions; "
            "lower one of the two"
        )
    return min(needed + _CONTEXT_MARGIN, max_positions)


def quiet_environment() -> dict[str, str]:
    """Environment that keeps libraries from filling the screen with what is no fault; set it before importing torch.

    Each variable that the user has set stays as it is.
    """
    quiet = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # The second: vLLM ends its engine core by a signal, and Python's tracker then counts a semaphore that it frees.
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore:resource_tracker:UserWarning",
        # Of this module errors only: it remarks in each process that a CPU build has no Triton.
        "TORCH_LOGS": "-torch._library.triton",
    }
    return {name: os.environ.get(name, value) for name, value in quiet.items()}


def environment(config: RolloutConfig) -> dict[str, str]:
    """Environment variables that vLLM reads while it is imported and started, here and in its child processes."""
    variables = {
        **quiet_environment(),
        "VLLM_NO_USAGE_STATS": "1",
        # Left to itself, vLLM chooses by what a model is.
        MODEL_RUNNER_VARIABLE: "1" if config.model_runner == "second" else "0",
        # A forked engine core cannot use CUDA where this process has as much as counted the GPUs.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if _on_cpu(config):
        # vLLM would pin its threads to cores that it does not own, and size them by the machine.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # The worker stays inside the engine core's process: vLLM gives it one of its own only to set
        # its threads, and pays with another start-up and with queues on which both ends spin.
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        variables["OMP_NUM_THREADS"] = str(config.threads_per_worker or 1)
        variables["KMP_BLOCKTIME"] = os.environ.get("KMP_BLOCKTIME", "0")
        # oneDNN keeps code and scratch memory for each number of rows that it has multiplied, by default 1,024 of them.
        variables["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
        # PyTorch then asks Linux for large pages. A step touches all of the KV cache that is in use.
        variables["THP_MEM_ALLOC_ENABLE"] = os.environ.get("THP_MEM_ALLOC_ENABLE", "1")
        # The same for oneDNN's packed weights, which new ones are converted into: without it half of the time that
        # takes goes to the pages. The engine core's own process reads it when it begins; other C libraries do not.
        variables["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    elif config.threads_per_worker is not None:
        variables["OMP_NUM_THREADS"] = str(config.threads_per_worker)
    return variables


def engine_arguments(settings: EngineSettings, checkpoint: JanusCheckpoint) -> dict[str, Any]:
    """Arguments of vLLM's `AsyncEngineArgs` for a checkpoint; imports vLLM."""
    from vllm.config.weight_transfer import WeightTransferConfig

    from rollout.vllm.plugin import WEIGHT_BACKEND, JanusOverride

    config = settings.rollout
    max_model_len = context_length(config, checkpoint)
    of_platform = _on_a_cpu(config) if _on_cpu(config) else _on_a_gpu(config)
    # On a CPU there is no device that would compute meanwhile.
    schedules_ahead = not (_on_cpu(config) or settings.deterministic)
    bursts = _on_cpu(config) and config.model_runner == "first" and config.enforce_eager
    scheduler = "BurstScheduler" if bursts else f"Holding{'Async' if schedules_ahead else ''}Scheduler"
    arguments: dict[str, Any] = {
        "model": str(checkpoint.folder),
        "hf_overrides": JanusOverride(checkpoint.special_ids, num_streams(config), settings.lora),
        "dtype": settings.dtype,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": max(max_model_len, config.max_num_seqs, _MIN_BATCHED_TOKENS),
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "async_scheduling": schedules_ahead,
        "scheduler_cls": f"rollout.vllm.scheduler.{scheduler}",
        "enforce_eager": config.enforce_eager,
        "tensor_parallel_size": config.tensor_parallel_size,
        "distributed_executor_backend": "mp" if config.tensor_parallel_size > 1 else "uni",
        "worker_cls": f"rollout.vllm.model.{_WORKERS[config.model_runner]}",
        # "Raw" is what the policy gives, before guidance and temperature; "processed" is what is sampled from.
        "logprobs_mode": "processed_logprobs" if settings.sampled_logprobs else "raw_logprobs",
        "weight_transfer_config": WeightTransferConfig(backend=WEIGHT_BACKEND),
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    return {**arguments, **of_platform, **config.vllm.arguments}


def _on_a_cpu(config: RolloutConfig) -> dict[str, Any]:
    return {"kv_cache_memory_bytes": config.kv_cache_bytes, "block_size": _CPU_BLOCK_TOKENS}


def _on_a_gpu(config: RolloutConfig) -> dict[str, Any]:
    cache = {} if config.kv_cache_bytes is None else {"kv_cache_memory_bytes": config.kv_cache_bytes}
    memory = {"gpu_memory_utilization": config.gpu_memory_utilization, "enable_sleep_mode": config.colocate}
    return {**memory, **cache}


def num_streams(config: RolloutConfig) -> int:
    """Streams that an engine computes for each sequence: without guidance the conditional one alone."""
    return 1 if config.guidance_scale == 1 else 2


@contextmanager
def environment_set(variables: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with `variables` in it, as it was before once the context ends.

    Environments belong to the whole process: nothing else may start processes or read the variables meanwhile. What
    vLLM itself adds to the environment in this time is left there.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _on_cpu(config: RolloutConfig) -> bool:
    return config.gpus_per_worker == 0
