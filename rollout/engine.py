"""The engine: one token sequence in, its continuation out.

Two classes implement `Engine`: `rollout.vllm.engine.VllmEngine`, which batches all that is asked of
it at once, and `rollout.transformers_engine.TransformersEngine`, its slow and obvious twin. The
rollout worker knows only this Protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rollout.records import Float32Array, Int32Array, WeightBucket


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One continuation to sample."""

    request_id: str
    """Unique among running requests."""
    phase: Literal["cot", "image"]
    """`cot`: text tokens until EOS, at most `max_new_tokens`. `image`: exactly `max_new_tokens`
    VQ codes, guided; the prompt ends with begin-of-image."""
    prompt_ids: Int32Array
    """int32 [N_prompt]."""
    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    guidance_scale: float
    """w in `u + w (c - u)`; only for `image`. 1 is no guidance."""
    seed: int


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """The sampled continuation."""

    token_ids: Int32Array
    """int32 [N]: text ids with the final EOS, or VQ codes from 0."""
    logprobs: Float32Array
    """float32 [N], nats, at temperature 1: of text tokens under the policy; of image tokens the *conditional* one.
    An engine made with sampled_logprobs records those of the distribution that it samples from instead: at the
    request's temperature (at 1 for a greedy one), and of image tokens the *guided* one."""
    oldest_weight_version: int
    newest_weight_version: int


class Engine(Protocol):
    """Samples continuations, and takes new weights while doing so."""

    async def start(self) -> None:
        """Load the model; raises ModelError when it cannot."""

    async def generate(self, request: SequenceRequest) -> SequenceResult:
        """Sample one continuation. Many calls may run at once; they share the batch."""

    async def generate_together(self, requests: Sequence[SequenceRequest]) -> list[SequenceResult]:
        """Sample these as one batch that holds nothing else, so that not even rounding depends on what else is asked.

        One call waits for the other; none may run beside `generate`.
        """

    async def update_weights(self, version: int, buckets: Sequence[WeightBucket]) -> None:
        """Swap in a weight version between two tokens; running sequences go on with the new weights.

        Raises WeightSyncError when a bucket does not fit the model.
        """

    @property
    def weight_version(self) -> int:
        """The version that samples now; 0 before the first update."""

    @property
    def is_usable(self) -> bool:
        """False once the engine has failed for good; only a new one can go on then."""

    async def close(self) -> None:
        """Free everything; safe to call twice."""
