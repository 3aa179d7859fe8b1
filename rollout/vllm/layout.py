"""Whether the installed vLLM is one whose internals this room knows. Looked at before an engine is started."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from configs.errors import LibraryError
from configs.library_layout import library_error, require_attributes, require_parameters

ENGINE_METHODS = (
    "from_engine_args", "add_request", "abort", "pause_generation", "resume_generation", "start_weight_update",
    "update_weights", "finish_weight_update", "update_weight_version", "init_weight_transfer_engine", "errored",
    "shutdown",
)  # fmt: skip
COMPLETION_FIELDS = ("token_ids", "logprobs", "finish_reason", "weight_versions")


def check_vllm(variables: Iterable[str]) -> None:
    """Raises LibraryError, which names the version, unless vLLM has all that this room uses of it.

    variables: names of the environment variables that are set for vLLM. It ignores one that it does not know, so a
    variable that a release has dropped would silently change what is sampled.
    """
    try:
        from vllm import envs
        from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer
        from vllm.outputs import CompletionOutput
        from vllm.v1.engine.async_llm import AsyncLLM

        from rollout.vllm.guidance_processor import GuidanceProcessor
        from rollout.vllm.guided_janus import GuidedJanus
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
    require_parameters("vllm", AsyncLLM.pause_generation, ["mode", "clear_cache"])
    require_parameters("vllm", LlamaAttention.forward, ["positions", "hidden_states"])
    require_parameters("vllm", LlamaDecoderLayer.__init__, ["vllm_config", "prefix", "config", "attn_layer_type"])
    _require("a field of CompletionOutput", set(COMPLETION_FIELDS) - _field_names(CompletionOutput))
    for own in (GuidanceProcessor, GuidedJanus, BicotWeightEngine, JanusOverride):
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
