"""The inference engine: samples the continuation of a token sequence, and takes new weights while it runs.

Two classes implement `Engine`: `rollout.vllm.engine.VllmEngine`, which runs all requests as one continuous batch,
and `rollout.transformers_engine.TransformersEngine`, which runs one sequence a forward pass and is there for
comparison. The rollout worker knows only this Protocol.

Each class has a factory, `await VllmEngine.start(settings)`, which returns an engine that is ready to sample. An
engine that exists has its model loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from configs.schema import LoraConfig, RolloutConfig, RunConfig
from rollout.records import BucketStream, Float32Array, GroupPlace, Int32Array, TensorInfo


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is started with."""

    model_path: str
    """Folder or hub id of a Janus checkpoint with safetensors files."""
    rollout: RolloutConfig
    """Of it, the engine reads its kind, device, threads, memory and the limits of a sequence."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations; guidance and log-probabilities are float32 in both."""
    revision: str | None = None
    """Git revision of a hub id."""
    sampled_logprobs: bool = False
    """Which log-probabilities are recorded; see `SequenceResult`."""
    deterministic: bool = False
    """vLLM schedules no step before the tokens of the last one are known, so timing decides no batch."""
    counts: bool = False
    """Whether `Engine.figures` are kept."""
    stages_weights: bool = True
    """vLLM: new weights are loaded beside the old ones, of which the host's memory must hold a second copy, and
    sampling pauses only to swap them. Else it pauses while they are loaded over the old ones."""
    lora: LoraConfig | None = None
    """Adapters beside the model, at first without effect; weight updates then hold them and nothing else."""

    @classmethod
    def of(cls, model_path: str, config: RunConfig) -> EngineSettings:
        """Those of a run's rollout workers. model_path: the policy that the run starts from."""
        return cls(
            model_path=model_path,
            rollout=config.rollout,
            dtype=config.model.dtype,
            revision=config.model.revision,
            sampled_logprobs=config.algorithm.records_sampled_logprobs,
            deterministic=config.run.deterministic,
            counts=config.watching.metrics,
            stages_weights=config.weight_sync.staged,
            lora=config.learner.lora,
        )

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The torch device of the engine and of the VQ model beside it."""
        return device_of(self.rollout)


def device_of(config: RolloutConfig) -> Literal["cpu", "cuda"]:
    """The torch device of a worker's models."""
    return "cuda" if config.gpus_per_worker > 0 else "cpu"


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
    top_k: int | None = None
    """Sample among so many likeliest tokens; None: among all. What is recorded is not renormalised to them, unless the
    engine was started with sampled_logprobs."""


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """The sampled continuation and its log-probabilities."""

    token_ids: Int32Array
    """int32 [N]: text ids with the final EOS, or VQ codes from 0."""
    logprobs: Float32Array
    """float32 [N], nats, at temperature 1: of text tokens under the policy; of image tokens the *conditional* one.
    An engine started with sampled_logprobs records those of the distribution that it samples from instead: at the
    request's temperature (at 1 for a greedy one), and of image tokens the *guided* one."""
    weight_versions: Int32Array
    """int32 [N]: the weight version that sampled each token; never falls."""
    unconditional_logprobs: Float32Array | None = None
    """float32 [N], nats, at temperature 1: of the same image tokens under the unconditional stream. None of text, and
    of an engine without guidance, which computes no such stream."""
    context_version: int | None = None
    """The version under which the prompt was submitted, where the engine keeps keys and values over new weights: tokens
    of other versions have a stale context. None: it computes them again."""

    @property
    def oldest_weight_version(self) -> int:
        return int(self.weight_versions[0])

    @property
    def newest_weight_version(self) -> int:
        return int(self.weight_versions[-1])


@dataclass(slots=True)
class EngineFigures:
    """How busy an engine is. What is counted is counted since it was started."""

    running: int = 0
    """Sequences in the batch."""
    waiting: int = 0
    """Sequences that wait for a place in it."""
    kv_cache_usage: float = 0.0
    """Share of the KV cache's blocks in use, 0 to 1."""
    prompt_tokens: int = 0
    """Tokens prefilled."""
    generated_tokens: int = 0
    preemptions: int = 0
    """Sequences put back, for want of room or for new weights; they are prefilled again."""
    prefix_queries: int = 0
    """Tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Of which it held so many."""
    weight_pause_s: float = 0.0
    """Seconds that sampling stood still for new weights."""


class CollectiveReceiver(Protocol):
    """Takes new weights from the learner's weight-transfer group, see `rollout.weights.groups`."""

    async def join_collective(self, place: GroupPlace) -> None:
        """Join a group, and leave the one before; returns when all members have. Raises WeightSyncError.

        The learner is rank 0; this engine's workers take ranks from `place.rank` on.
        """

    async def receive_collective(self, version: int, layout: Sequence[TensorInfo], bucket_bytes: int) -> None:
        """`Engine.update_weights` from the group: the learner broadcasts these tensors, in this order, meanwhile.

        Raises WeightSyncError; the engine then goes on with its old weights, and the group is of no more use.
        """

    async def abort_collective(self) -> None:
        """Break off what is received, and leave the group."""


class Engine(Protocol):
    """Samples continuations, and takes new weights while doing so."""

    async def generate(self, request: SequenceRequest) -> SequenceResult:
        """Sample one continuation. Many calls may run at once; they share the batch."""

    async def generate_together(self, requests: Sequence[SequenceRequest]) -> list[SequenceResult]:
        """Sample these as one batch that holds nothing else, so that not even rounding depends on what else is asked.

        One call waits for the other; none may run beside `generate`.
        """

    async def update_weights(self, version: int, buckets: BucketStream) -> None:
        """Swap in a weight version between two tokens; running sequences go on with the new weights.

        buckets: each is let go before the one after the next is asked for, where the engine can.
        Raises WeightSyncError when a bucket does not fit the model.
        """

    async def sleep(self) -> None:
        """Give up the memory of its device to others until `wake`, as far as it can; nothing is sampled meanwhile.

        Weights are kept in the host's memory, the KV cache is dropped, and running sequences are computed again. On a
        CPU, whose memory is the host's, only sampling stops. A second call changes nothing. Raises RolloutError.
        """

    async def wake(self) -> None:
        """Take the memory back, and go on; of an engine that is awake it changes nothing. Raises RolloutError."""

    @property
    def collective(self) -> CollectiveReceiver | None:
        """The way to update weights by broadcast; None for an engine that has none."""

    @property
    def figures(self) -> EngineFigures | None:
        """How busy it is; None for an engine that does not count."""

    @property
    def weight_version(self) -> int:
        """The version that samples now; 0 before the first update."""

    @property
    def is_usable(self) -> bool:
        """False once the engine has failed for good; only a new one can go on then."""

    async def check_alive(self) -> None:
        """Return when whatever computes the tokens has answered, however long that takes: after a few tokens at the
        latest when it is well, and never when it is frozen. Raises RolloutError when it is dead or closed."""

    async def close(self) -> None:
        """Free everything; safe to call twice."""
