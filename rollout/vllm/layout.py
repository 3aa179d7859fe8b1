"""Whether the installed vLLM is one whose internals this room knows. Looked at before an engine is started."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from configs.errors import ConfigError, LibraryError
from configs.library_layout import library_error, require_attributes, require_parameters
from rollout.vllm.settings import MODEL_RUNNER_VARIABLE

ENGINE_METHODS = (
    "from_engine_args", "add_request", "abort", "pause_generation", "resume_generation", "start_weight_update",
    "update_weights", "finish_weight_update", "update_weight_version", "init_weight_transfer_engine", "collective_rpc",
    "errored", "shutdown", "sleep", "wake_up",
)  # fmt: skip
CPU_KERNELS = (
    "fused_add_rms_norm", "fused_gumbel_argmax",
    "cpu_attn_reshape_and_cache", "cpu_attention_with_kv_cache", "get_scheduler_metadata",
)  # fmt: skip
LOGPROBS_FIELDS = ("logprob_token_ids", "logprobs", "sampled_token_ranks")
RUNNER_OUTPUT_FIELDS = ("logprobs", "req_id_to_index")
COMPLETION_FIELDS = ("token_ids", "logprobs", "finish_reason", "weight_versions")


def check_vllm(variables: Mapping[str, str]) -> None:
    """Raises LibraryError, which names the version, unless vLLM has all that this room uses of it.

    variables: environment variables that are set for vLLM. It ignores one that it does not know, so a variable that a
    release has dropped would silently change what is sampled. ConfigError for a model runner that cannot run here.
    """
    try:
        import torch
        from vllm import envs
        from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
        from vllm.model_executor.models.llama import LlamaMLP
        from vllm.outputs import CompletionOutput
        from vllm.platforms import current_platform
        from vllm.triton_utils import HAS_TRITON
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.core_client import AsyncMPClient
        from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

        from rollout.vllm.model.first_runner import FirstRunnerWorker
        from rollout.vllm.model.guided_janus import GuidedJanus
        from rollout.vllm.model.second_runner import GuidedModelState
        from rollout.vllm.plugin import JanusOverride
        from rollout.vllm.weights import BicotWeightEngine
    except ImportError as error:
        if error.name == "vllm":
            raise LibraryError(
                "vllm is not installed: install bicot[cpu] or bicot[gpu], or set rollout.engine to transformers"
            ) from error
        raise library_error("vllm", f"cannot be used ({error})") from error

    known_variables = envs.environment_variables
    _require("a variable", {name for name in variables if name.startswith("VLLM_")} - known_variables.keys())
    require_attributes("vllm", AsyncLLM, ENGINE_METHODS)
    for pause in (AsyncLLM.pause_generation, AsyncMPClient.pause_scheduler_async):
        require_parameters("vllm", pause, ["mode", "clear_cache"])
    require_parameters("vllm", AsyncLLM.sleep, ["level", "mode"])
    require_parameters("vllm", LlamaMLP.__init__, ["hidden_size", "intermediate_size", "hidden_act", "prefix"])
    require_attributes("vllm", RotaryEmbedding, ["forward_cpu"])
    require_attributes("vllm", FirstRunnerWorker, ["load_model", "execute_model", "sample_tokens"])
    if variables.get(MODEL_RUNNER_VARIABLE) == "1" and not HAS_TRITON:
        raise ConfigError("rollout.model_runner: the second is written in Triton, which is not here; use first")
    require_attributes("vllm", AsyncScheduler, ["update_from_output", "finish_requests"], "its scheduler")
    _require("a field of ModelRunnerOutput", set(RUNNER_OUTPUT_FIELDS) - _field_names(ModelRunnerOutput))
    require_attributes("vllm", LogprobsLists, LOGPROBS_FIELDS)
    if current_platform.is_cpu():
        require_attributes("vllm", torch.ops._C, CPU_KERNELS, "its CPU kernels")
    _require("a field of CompletionOutput", set(COMPLETION_FIELDS) - _field_names(CompletionOutput))
    for own in (FirstRunnerWorker, GuidedModelState, GuidedJanus, BicotWeightEngine, JanusOverride):
        if lacking := sorted(getattr(own, "__abstractmethods__", ())):
            raise library_error("vllm", f"asks {', '.join(lacking)} of {own.__name__}'s base, which bicot has not")


def check_arguments(arguments: Iterable[str]) -> None:
    """Raises LibraryError unless vLLM's `AsyncEngineArgs` has all these arguments."""
    from vllm import AsyncEngineArgs

    _require("an engine argument", set(arguments) - _field_names(AsyncEngineArgs))


def _field_names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _require(what: str, missing: set[str]) -> None:
    if missing:
        raise library_error("vllm", f"does not know {', '.join(sorted(missing))} as {what}")
