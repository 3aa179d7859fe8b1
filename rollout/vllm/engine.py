"""`Engine` on vLLM: many sequences at once, guided within the engine, weights swapped between tokens.

    generate ──► AsyncLLM (this process) ◄──► engine core ◄──► worker(s): rollout.vllm.guided_janus
                                                                           rollout.vllm.guidance_processor
    update_weights ─► pause ─► buckets, one by one, through shared memory ─► rollout.vllm.weights ─► resume

Semantic CoTs and pictures are both plain requests to vLLM and share its batch. vLLM is imported in
`start`, after the environment that it and its child processes read is set.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.errors import ModelError, RolloutError, WeightSyncError
from rollout.engine import EngineSettings, SequenceRequest, SequenceResult
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.records import WeightBucket
from rollout.vllm.settings import context_length, engine_args, environment
from rollout.weights import WeightManifest
from rollout.weights.buckets import bucket_file

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.async_llm import AsyncLLM

_LIFE_SIGN_S = 0.5
"""How often a weight update looks whether the engine is alive."""


class VllmEngine:
    """See `rollout.engine.Engine`. Lives in the asyncio loop that it was started in."""

    def __init__(
        self, checkpoint: JanusCheckpoint, manifest: WeightManifest, max_model_len: int, llm: AsyncLLM
    ) -> None:
        """Of a running `AsyncLLM` with the weights of `checkpoint`, as version 0; `start` gives one."""
        self._checkpoint = checkpoint
        self._manifest = manifest
        self._max_model_len = max_model_len
        self._llm: AsyncLLM | None = llm
        self._weight_version = 0
        self._update_lock = asyncio.Lock()
        self._broken: str | None = None
        self._sampling: set[asyncio.Task[CompletionOutput]] = set()

    @classmethod
    async def start(cls, settings: EngineSettings) -> VllmEngine:
        """An engine with its model loaded. Raises ModelError when it cannot be, ConfigError when the context is too
        short."""
        checkpoint = JanusCheckpoint.from_pretrained(settings.model_path, settings.revision, weights=True)
        manifest = WeightManifest.from_folder(checkpoint.folder)
        max_model_len = context_length(settings.rollout, checkpoint)
        os.environ.update(environment(settings.rollout))
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            # In this thread: vLLM ties its output handler to the loop that is running here.
            llm = AsyncLLM.from_engine_args(engine_args(settings, checkpoint))
        except (RuntimeError, ValueError, OSError) as error:
            # What vLLM calls "above" is in a log where this is an actor.
            reason = str(error).replace("See root cause above.", "The output of this process says why.")
            raise ModelError(f"vLLM cannot run model {checkpoint.folder}: {reason}") from error
        await llm.update_weight_version("0")
        return cls(checkpoint, manifest, max_model_len, llm)

    @property
    def collective(self) -> VllmEngine:
        """This engine: vLLM's workers can join an NCCL group."""
        return self

    @property
    def weight_version(self) -> int:
        return self._weight_version

    @property
    def is_usable(self) -> bool:
        """False after vLLM's engine process has died, and after a weight version that was loaded in part only."""
        return self._broken is None and (self._llm is None or not self._llm.errored)

    async def generate(self, request: SequenceRequest) -> SequenceResult:
        """See Engine. Raises ValueError for a request that cannot be served, RolloutError when the engine fails.

        A cancelled call aborts its request.
        """
        llm = self._running
        self._check_request(request)
        sampling = asyncio.create_task(self._sample(llm, request))
        self._sampling.add(sampling)
        sampling.add_done_callback(self._sampling.discard)
        try:
            completion = await sampling
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise RolloutError(f"the vLLM engine was closed before it ended request {request.request_id}") from None
        self._check_usable()
        return self._result(request, completion)

    async def generate_together(self, requests: Sequence[SequenceRequest]) -> list[SequenceResult]:
        """See Engine: neither prefix cache nor new weights come in between. Raises a group of `generate`'s errors."""
        async with self._update_lock, asyncio.TaskGroup() as together:
            llm = self._running
            num_before = llm.output_processor.get_num_unfinished_requests()
            await llm.pause_generation(mode="keep", clear_cache=True)
            try:
                tasks = [together.create_task(self.generate(request)) for request in requests]
                # The engine gets calls in their order: those that are submitted now come before the resume.
                while llm.output_processor.get_num_unfinished_requests() - num_before < len(requests):
                    if any(task.done() for task in tasks):
                        break  # one was refused, which the task group raises
                    await asyncio.sleep(0.001)
            finally:
                await llm.resume_generation()
        return [task.result() for task in tasks]

    async def update_weights(self, version: int, buckets: Sequence[WeightBucket]) -> None:
        """See Engine.

        Running sequences are preempted, and continue with their context recomputed under the new
        weights: from the next token on, log-probabilities are what the new weights alone would give.
        Raises WeightSyncError; when a bucket does not fit, the engine goes on with its old weights,
        and when loading fails half-way, it refuses all further work.
        """
        self._manifest.check_buckets(buckets)
        await self._unless_engine_dies(self._load_buckets(version, buckets))

    async def _load_buckets(self, version: int, buckets: Sequence[WeightBucket]) -> None:
        async with self._swapping_weights(version) as llm:
            for bucket in buckets:
                with bucket_file(bucket) as path:
                    await self._load(llm, bucket.names, bucket.dtypes, bucket.shapes, path)

    async def _unless_engine_dies(self, update: Coroutine[Any, Any, None]) -> None:
        """Await `update`; vLLM itself waits for ever for the answer of an engine core that has died."""
        task = asyncio.create_task(update)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_LIFE_SIGN_S)
                if not task.done() and not self.is_usable:
                    raise WeightSyncError("the vLLM engine died while its weights were being updated")
        finally:
            task.cancel()
        task.result()

    async def init_collective(self, master_address: str, master_port: int, rank_offset: int, world_size: int) -> None:
        """See `rollout.engine.CollectiveReceiver`. The workers take `tensor_parallel_size` ranks from `rank_offset`.

        Needs GPUs; never run by the tests, which have none.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        init_info = {
            "master_address": master_address,
            "master_port": master_port,
            "rank_offset": rank_offset,
            "world_size": world_size,
        }
        try:
            await self._running.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))
        except Exception as error:
            raise WeightSyncError(f"cannot join the weight collective at {master_address}:{master_port}") from error

    async def receive_collective(
        self, version: int, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        """See `rollout.engine.CollectiveReceiver`."""
        self._manifest.check_tensors(zip(names, shapes, dtypes, strict=True))
        await self._unless_engine_dies(self._load_collective(version, names, dtypes, shapes))

    async def _load_collective(
        self, version: int, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        async with self._swapping_weights(version) as llm:
            await self._load(llm, names, dtypes, shapes, path=None)

    async def close(self) -> None:
        """End vLLM's processes; safe to call twice. Requests that still run end with RolloutError."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        for sampling in self._sampling:
            sampling.cancel()
        await asyncio.gather(*self._sampling, return_exceptions=True)
        # Not in a thread: vLLM's output handler, in this loop, would take the end for a failure.
        llm.shutdown()

    @property
    def _running(self) -> AsyncLLM:
        self._check_usable()
        if self._llm is None:
            raise RolloutError("the vLLM engine is not running: it was closed")
        return self._llm

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise RolloutError(self._broken)

    @asynccontextmanager
    async def _swapping_weights(self, version: int) -> AsyncIterator[AsyncLLM]:
        """Pause, let the body load tensors, commit them as `version`, resume."""
        async with self._update_lock:
            llm = self._running
            try:
                # Nothing is computed until the resume, so caches cleared here stay free of the old weights' keys.
                await llm.pause_generation(mode="keep", clear_cache=True)
                try:
                    await llm.start_weight_update()
                    yield llm
                    await llm.finish_weight_update(str(version))
                except BaseException:
                    self._broken = f"the vLLM engine may hold half of weight version {version}; start a new one"
                    raise
                finally:
                    await llm.resume_generation()
            except WeightSyncError:
                raise
            except Exception as error:
                raise WeightSyncError(f"weight version {version} was not loaded: {error}") from error
            self._weight_version = version

    async def _load(
        self,
        llm: AsyncLLM,
        names: Sequence[str],
        dtypes: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        path: str | None,
    ) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        update_info = {
            "names": list(names),
            "dtype_names": list(dtypes),
            "shapes": [list(shape) for shape in shapes],
            "path": path,
        }
        try:
            await llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))
        except Exception as error:
            raise WeightSyncError(f"tensors '{names[0]}' to '{names[-1]}' were not loaded: {error}") from error

    async def _sample(self, llm: AsyncLLM, request: SequenceRequest) -> CompletionOutput:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        prompt = {"prompt_token_ids": request.prompt_ids.tolist()}
        completion: CompletionOutput | None = None
        try:
            async for output in llm.generate(prompt, self._sampling_params(request), request.request_id):
                completion = output.outputs[0]
        except (EngineDeadError, EngineGenerateError) as error:
            raise RolloutError(f"the vLLM engine failed at request {request.request_id}: {error}") from error
        if completion is None or completion.finish_reason not in ("stop", "length"):
            reason = completion.finish_reason if completion else "no output"
            raise RolloutError(f"the vLLM engine ended request {request.request_id} early: {reason}")
        return completion

    def _check_request(self, request: SequenceRequest) -> None:
        num_tokens = len(request.prompt_ids) + request.max_new_tokens
        if num_tokens > self._max_model_len:
            raise ValueError(
                f"request {request.request_id}: {len(request.prompt_ids)} prompt tokens and {request.max_new_tokens} "
                f"new ones do not fit the engine's context of {self._max_model_len}"
            )
        begin_of_image = self._checkpoint.special_ids.begin_of_image
        if request.phase == "image" and request.prompt_ids[-1] != begin_of_image:
            raise ValueError(f"request {request.request_id}: its prompt does not end with begin-of-image")

    def _sampling_params(self, request: SequenceRequest) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from rollout.vllm.guidance_processor import GUIDANCE_SCALE

        draws = request.phase == "image"
        return SamplingParams(
            temperature=request.temperature,
            max_tokens=request.max_new_tokens,
            seed=request.seed,
            ignore_eos=True,
            stop_token_ids=None if draws else [self._checkpoint.special_ids.eos],
            extra_args={GUIDANCE_SCALE: request.guidance_scale} if draws else None,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _result(self, request: SequenceRequest, completion: CompletionOutput) -> SequenceResult:
        token_ids = np.asarray(completion.token_ids, dtype=np.int32)
        if request.phase == "image":
            token_ids -= np.int32(self._checkpoint.text_vocab_size)
        logprobs = np.asarray(completion.logprobs.logprobs, dtype=np.float32)
        assert len(logprobs) == len(token_ids), "vLLM gives one log-probability a token with logprobs=0"
        versions = [int(span.version) for span in completion.weight_versions]
        return SequenceResult(token_ids, logprobs, min(versions), max(versions))
