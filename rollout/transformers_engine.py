"""The reference engine: transformers' own Janus, without batching, one sequence a forward pass.

    generate ─► one decoding step at a time on a single thread ─► SequenceResult
                     ▲ update_weights runs on the same thread, so it falls between two tokens

Tests compare the vLLM engine with it, and it is fast enough for a handful of pictures. A picture is sampled
from two streams with a KV cache each: the conditional one sees the prompt, the unconditional
one sees padding in its place (`rollout.guidance`); both see the same image tokens.
A token is sampled from `u + w (c - u)`; what is recorded is its log-probability under c alone, unless
those of the sampled distribution are asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, JanusForConditionalGeneration

from configs.errors import ModelError, RolloutError, WeightSyncError
from rollout.engine import EngineSettings, SequenceRequest, SequenceResult
from rollout.guidance import guided_logits, unconditional_ids
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.records import BucketStream, WeightBucket
from rollout.weights import unpack_bucket
from rollout.weights.adapters import adapter_parameters, add_adapters
from rollout.weights.buckets import each_bucket

CLOSED = "the transformers engine is not running: it was closed"


@dataclass(slots=True)
class _Stream:
    """One context and its key-value cache."""

    next_embeddings: torch.Tensor
    """[N, hidden]: of the tokens that the cache does not hold yet."""
    cache: DynamicCache = field(default_factory=DynamicCache)


@dataclass(slots=True)
class _RunningSequence:
    request: SequenceRequest
    streams: list[_Stream]
    """The conditional stream; for pictures, the unconditional one behind it."""
    stop_id: int | None
    """EOS, for text."""
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    unconditional_logprobs: list[float] = field(default_factory=list)
    """Of pictures."""
    weight_versions: list[int] = field(default_factory=list)
    finished: bool = False

    def result(self) -> SequenceResult:
        unconditional = np.array(self.unconditional_logprobs, dtype=np.float32)
        return SequenceResult(
            token_ids=np.array(self.token_ids, dtype=np.int32),
            logprobs=np.array(self.logprobs, dtype=np.float32),
            weight_versions=np.array(self.weight_versions, dtype=np.int32),
            unconditional_logprobs=unconditional if len(self.streams) == 2 else None,
        )


class TransformersEngine:
    """Implements `rollout.engine.Engine` with `JanusForConditionalGeneration`."""

    def __init__(
        self, settings: EngineSettings, checkpoint: JanusCheckpoint, model: Any, thread: ThreadPoolExecutor
    ) -> None:
        """Of a loaded model, which from now on `thread` alone may touch; `start` gives one."""
        self._sampled_logprobs = settings.sampled_logprobs
        self._device = torch.device(settings.device)
        self._checkpoint = checkpoint
        self._model = model
        self._thread = thread
        self._is_closed = False
        self._weight_version = 0

    @classmethod
    async def start(cls, settings: EngineSettings) -> TransformersEngine:
        """An engine with its model loaded. Raises ModelError when it cannot be."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformers-engine")
        try:
            checkpoint, model = await asyncio.get_running_loop().run_in_executor(thread, _load, settings)
        except BaseException:
            thread.shutdown(wait=False, cancel_futures=True)
            raise
        return cls(settings, checkpoint, model, thread)

    async def generate(self, request: SequenceRequest) -> SequenceResult:
        """Sample one continuation. Sequences that run at once take turns, token by token.

        Raises ValueError for a request that cannot be served.
        """
        sequence = await self._on_thread(self._begin, request)
        while not sequence.finished:
            await self._on_thread(self._advance, sequence)
        return sequence.result()

    async def generate_together(self, requests: Sequence[SequenceRequest]) -> list[SequenceResult]:
        """Sample them beside each other: a sequence has its forward passes to itself in any case."""
        return list(await asyncio.gather(*map(self.generate, requests)))

    async def update_weights(self, version: int, buckets: BucketStream) -> None:
        """Swap in a weight version between two tokens. Raises WeightSyncError, and then changes nothing."""
        whole = [bucket async for bucket in each_bucket(buckets)]
        await self._on_thread(self._load_buckets, version, whole)

    async def sleep(self) -> None:
        """See Engine. Sequences that run keep their KV caches on the device, and cannot go on before `wake`."""
        await self._on_thread(self._model.to, "cpu")

    async def wake(self) -> None:
        """See Engine."""
        await self._on_thread(self._model.to, self._device)

    @property
    def collective(self) -> None:
        """None: weights come in buckets only."""
        return None

    @property
    def figures(self) -> None:
        return None

    @property
    def weight_version(self) -> int:
        return self._weight_version

    @property
    def is_usable(self) -> bool:
        """Always: it has no process of its own that could die."""
        return True

    async def check_alive(self) -> None:
        """Nothing to ask: it lives and freezes with this process. Raises RolloutError when it is closed."""
        if self._is_closed:
            raise RolloutError(CLOSED)

    async def close(self) -> None:
        """Free the model; safe to call twice. Requests that still run end with RolloutError."""
        self._is_closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._model = None

    async def _on_thread(self, function: Any, *arguments: Any) -> Any:
        closed = RolloutError(CLOSED)
        if self._is_closed:
            raise closed
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._is_closed and not (caller is not None and caller.cancelling()):
                raise closed from None  # `close` has cancelled what still waited for the thread
            raise

    @torch.inference_mode()
    def _begin(self, request: SequenceRequest) -> _RunningSequence:
        checkpoint = self._checkpoint
        num_tokens = len(request.prompt_ids) + request.max_new_tokens
        if num_tokens > checkpoint.max_positions:
            raise ValueError(
                f"request {request.request_id} takes up to {num_tokens} tokens, "
                f"the model's context holds {checkpoint.max_positions}"
            )
        special = checkpoint.special_ids
        contexts = [torch.from_numpy(request.prompt_ids).long()]
        stop_id: int | None = special.eos
        if request.phase == "image":
            if request.prompt_ids[-1] != special.begin_of_image:
                raise ValueError(f"request {request.request_id}: its prompt does not end with begin-of-image")
            contexts.append(unconditional_ids(contexts[0], special, checkpoint.text_vocab_size))
            stop_id = None
        return _RunningSequence(
            request=request,
            streams=[_Stream(self._embed_text(context)) for context in contexts],
            stop_id=stop_id,
            generator=torch.Generator().manual_seed(request.seed),
        )

    @torch.inference_mode()
    def _advance(self, sequence: _RunningSequence) -> None:
        """Sample the next token of a sequence."""
        request = sequence.request
        hidden = [self._last_hidden_state(stream) for stream in sequence.streams]
        if request.phase == "cot":
            policy_logits = sampling_logits = self._model.lm_head(hidden[0]).float().cpu()
        else:
            policy_logits, unconditional = (self._model.model.generation_head(state).float().cpu() for state in hidden)
            sampling_logits = guided_logits(policy_logits, unconditional, request.guidance_scale)
        if request.top_k is not None:
            least = sampling_logits.topk(min(request.top_k, len(sampling_logits))).values[-1]
            sampling_logits = sampling_logits.masked_fill(sampling_logits < least, -torch.inf)
        token_id = _sample(sampling_logits, request.temperature, sequence.generator)
        sequence.token_ids.append(token_id)
        recorded = sampling_logits / (request.temperature or 1.0) if self._sampled_logprobs else policy_logits
        sequence.logprobs.append(float(recorded.log_softmax(-1)[token_id]))
        if request.phase == "image":
            sequence.unconditional_logprobs.append(float(unconditional.log_softmax(-1)[token_id]))
        sequence.weight_versions.append(self._weight_version)
        sequence.finished = token_id == sequence.stop_id or len(sequence.token_ids) == request.max_new_tokens
        embed = self._embed_code if request.phase == "image" else self._embed_text
        embedding = embed(torch.tensor([token_id]))
        for stream in sequence.streams:
            stream.next_embeddings = embedding

    def _last_hidden_state(self, stream: _Stream) -> torch.Tensor:
        output = self._model.model.language_model(
            inputs_embeds=stream.next_embeddings[None], past_key_values=stream.cache, use_cache=True
        )
        return output.last_hidden_state[0, -1]

    def _embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        return self._model.get_input_embeddings()(ids.to(self._device))

    def _embed_code(self, codes: torch.Tensor) -> torch.Tensor:
        return self._model.prepare_embeddings_for_image_generation(codes.to(self._device))

    @torch.inference_mode()
    def _load_buckets(self, version: int, buckets: Sequence[WeightBucket]) -> None:
        parameters = adapter_parameters(self._model) or dict(self._model.named_parameters(remove_duplicate=False))
        weights = [weight for bucket in buckets for weight in unpack_bucket(bucket)]
        for name, tensor in weights:
            if name not in parameters:
                raise WeightSyncError(f"weight '{name}' of version {version} is not in the model")
            if tensor.shape != parameters[name].shape:
                raise WeightSyncError(
                    f"weight '{name}' of version {version} has shape {tuple(tensor.shape)}, "
                    f"the model's has {tuple(parameters[name].shape)}"
                )
        for name, tensor in weights:
            parameters[name].copy_(tensor)
        self._weight_version = version


def _load(settings: EngineSettings) -> tuple[JanusCheckpoint, Any]:
    """The checkpoint and transformers' model on its device. Raises ModelError."""
    checkpoint = JanusCheckpoint.from_pretrained(settings.model_path, settings.revision, weights=True)
    try:
        model, info = JanusForConditionalGeneration.from_pretrained(
            str(checkpoint.folder), dtype=getattr(torch, settings.dtype), output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model {checkpoint.folder}: its weights cannot be loaded: {error}") from error
    if info["missing_keys"]:
        raise ModelError(f"model {checkpoint.folder}: weights are missing: {sorted(info['missing_keys'])[:3]}")
    if settings.lora is not None:
        add_adapters(model.model.language_model, settings.lora)
    return checkpoint, model.to(torch.device(settings.device)).eval()


def _sample(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    """Index of a token drawn from `softmax(logits / temperature)`; the likeliest one at temperature 0."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
