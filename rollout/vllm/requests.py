"""One sequence in vLLM's terms: what it is asked, and what its answer means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from configs.errors import RolloutError
from rollout.engine import SequenceRequest, SequenceResult
from rollout.janus_checkpoint import JanusCheckpoint

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput


def check_request(request: SequenceRequest, checkpoint: JanusCheckpoint, max_model_len: int, is_guided: bool) -> None:
    """Raises ValueError for a request that an engine with this context cannot serve, or with one stream alone."""
    if len(request.prompt_ids) + request.max_new_tokens > max_model_len:
        raise ValueError(
            f"request {request.request_id}: {len(request.prompt_ids)} prompt tokens and {request.max_new_tokens} "
            f"new ones do not fit the engine's context of {max_model_len}"
        )
    if request.phase == "image" and request.prompt_ids[-1] != checkpoint.special_ids.begin_of_image:
        raise ValueError(f"request {request.request_id}: its prompt does not end with begin-of-image")
    if request.phase == "image" and request.guidance_scale != 1 and not is_guided:
        raise ValueError(
            f"request {request.request_id} asks for guidance {request.guidance_scale:g} of an engine that was started "
            "without: rollout.guidance_scale is 1"
        )


def sampling_params(request: SequenceRequest, checkpoint: JanusCheckpoint) -> SamplingParams:
    """A picture ends after `max_new_tokens`, a CoT with EOS or there. One log-probability a token comes back."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from rollout.vllm.model.row_settings import extra_args

    draws = request.phase == "image"
    return SamplingParams(
        temperature=request.temperature,
        top_k=request.top_k or 0,
        max_tokens=request.max_new_tokens,
        ignore_eos=True,
        stop_token_ids=None if draws else [checkpoint.special_ids.eos],
        extra_args=extra_args(request.seed, request.guidance_scale if draws else None),
        logprobs=1,  # the two columns of `rollout.vllm.model.sampler.Sampled`
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def result_of(
    request: SequenceRequest,
    completion: CompletionOutput,
    checkpoint: JanusCheckpoint,
    context_version: int | None = None,
) -> SequenceResult:
    """The sampled continuation. context_version: see `SequenceResult`.

    Raises RolloutError when vLLM has ended it early, or has left something out."""
    if completion.finish_reason not in ("stop", "length"):
        reason = completion.finish_reason or "no reason given"
        raise RolloutError(f"the vLLM engine ended request {request.request_id} early: {reason}")
    token_ids = np.asarray(completion.token_ids, dtype=np.int32)
    if request.phase == "image":
        token_ids -= np.int32(checkpoint.text_vocab_size)
    # Two a token, one behind the other; see `rollout.vllm.model.sampler.Sampled`.
    both = np.asarray(getattr(completion.logprobs, "logprobs", ()), dtype=np.float32)
    logprobs, unconditional = both[::2], both[1::2]
    spans = completion.weight_versions or ()
    versions = np.repeat(
        np.array([int(span.version) for span in spans], dtype=np.int32), [span.end - span.start for span in spans]
    )
    if not len(token_ids) or not len(logprobs) == len(versions) == len(token_ids):
        raise RolloutError(
            f"the vLLM engine gave {len(logprobs)} log-probabilities and {len(versions)} weight versions for the "
            f"{len(token_ids)} tokens of request {request.request_id}"
        )
    has_stream = not np.isnan(unconditional).any()
    return SequenceResult(token_ids, logprobs, versions, unconditional if has_stream else None, context_version)
