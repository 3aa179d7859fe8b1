"""vLLM's own engine, started with bicot's model, sampler and weight updates in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from configs.errors import ModelError
from rollout.engine import EngineFigures
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.vllm.layout import check_arguments

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def make_llm(arguments: Mapping[str, Any], checkpoint: JanusCheckpoint, figures: EngineFigures | None) -> AsyncLLM:
    """Start vLLM in the loop that is running. figures: are kept up to date. Raises ModelError, LibraryError."""
    check_arguments(arguments)
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from rollout.vllm.plugin import register
    from rollout.vllm.statistics import FiguresLogger

    register()
    loggers = None if figures is None else [lambda *_: FiguresLogger(figures)]
    try:
        # In this thread: vLLM ties its output handler to the loop that is running here.
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=loggers)
    except (RuntimeError, ValueError, OSError) as error:
        # What vLLM calls "above" is in a log where this is an actor.
        reason = str(error).replace("See root cause above.", "The output of this process says why.")
        raise ModelError(f"vLLM cannot run model {checkpoint.folder}: {reason}") from error
