"""`Engine` on vLLM: continuous batching, classifier-free guidance inside the model, weights updated between tokens.

    generate ──► AsyncLLM (this process) ◄──► engine core ◄──► worker(s): rollout.vllm.model.guided_janus
                                                                           rollout.vllm.model.first_runner, sampler
    update_weights ─► rollout.vllm.weights ─► beside the old ones, while sampling goes on ─► pause, swap, resume

Semantic CoTs and pictures are both plain requests to vLLM and share its batch. vLLM is imported in
`start`, while the environment that it and its child processes read is set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from configs.errors import RolloutError, WeightSyncError
from configs.local.owned_folder import OwnedFolder
from rollout.engine import EngineFigures, EngineSettings, SequenceRequest, SequenceResult
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.records import BucketStream, GroupPlace, TensorInfo
from rollout.vllm.layout import check_vllm
from rollout.vllm.requests import check_request, result_of, sampling_params
from rollout.vllm.scratch import end_scratch, make_scratch, scratch_environment, temporary_files_in
from rollout.vllm.settings import context_length, engine_arguments, environment, environment_set, num_streams
from rollout.vllm.starting import make_llm
from rollout.vllm.waiting import answer_or_death
from rollout.vllm.weights.updating import EngineWeights
from rollout.weights import WeightManifest

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.async_llm import AsyncLLM


class VllmEngine:
    """See `rollout.engine.Engine`. Lives in the asyncio loop that it was started in.

    Several may live in one process, but vLLM remembers in it the environment of the first: engines with other threads
    or on another device belong in processes of their own.
    """

    def __init__(
        self,
        checkpoint: JanusCheckpoint,
        max_model_len: int,
        is_guided: bool,
        llm: AsyncLLM,
        weights: EngineWeights,
        scratch: OwnedFolder,
        figures: EngineFigures | None = None,
    ) -> None:
        """Of a running `AsyncLLM`; `start` gives one.

        scratch: its temporary files, see `rollout.vllm.scratch`.
        """
        self._figures = figures
        self._checkpoint = checkpoint
        self._max_model_len = max_model_len
        self._is_guided = is_guided
        self._llm: AsyncLLM | None = llm
        self._weights = weights
        self._scratch = scratch
        self._sampling: set[asyncio.Task[CompletionOutput]] = set()
        self._is_asleep = False

    @classmethod
    async def start(cls, settings: EngineSettings) -> VllmEngine:
        """An engine with its model loaded.

        Raises ModelError when it cannot be, ConfigError when the context is too short, and LibraryError for a version
        of vLLM that this room does not know.
        """
        checkpoint = JanusCheckpoint.from_pretrained(settings.model_path, settings.revision, weights=True)
        manifest = WeightManifest.from_folder(checkpoint.folder).of_updates(settings.lora)
        max_model_len = context_length(settings.rollout, checkpoint)
        with ExitStack() as on_error:
            scratch = on_error.enter_context(make_scratch())
            variables = {**environment(settings.rollout), **scratch_environment(scratch.path)}
            # vLLM and the processes that it starts here read them, and keep what they have read. No await in between.
            with environment_set(variables), temporary_files_in(scratch.path):
                check_vllm(variables)
                figures = EngineFigures() if settings.counts else None
                llm = make_llm(engine_arguments(settings, checkpoint), checkpoint, figures)
            weights = await EngineWeights.of(
                llm, manifest, settings.stages_weights, scratch.path, settings.rollout.recompute_on_swap
            )
            on_error.pop_all()
        is_guided = num_streams(settings.rollout) == 2
        return cls(checkpoint, max_model_len, is_guided, llm, weights, scratch, figures)

    @property
    def collective(self) -> VllmEngine | None:
        """This engine, where its weights are staged: its vLLM workers can join a group."""
        return self if self._weights.are_staged else None

    @property
    def figures(self) -> EngineFigures | None:
        if self._figures is not None:
            self._figures.weight_pause_s = self._weights.paused_s
        return self._figures

    @property
    def weight_version(self) -> int:
        return self._weights.version

    @property
    def is_usable(self) -> bool:
        """False after vLLM's engine process has died, and after a weight version that was loaded in part only."""
        return self._weights.broken is None and (self._llm is None or not self._llm.errored)

    async def generate(self, request: SequenceRequest) -> SequenceResult:
        """See Engine. Raises ValueError for a request that cannot be served, RolloutError when the engine fails.

        A cancelled call aborts its request.
        """
        return await self._generate(request, asyncio.Event())

    async def _generate(self, request: SequenceRequest, submitted: asyncio.Event) -> SequenceResult:
        """`generate`; `submitted` is set once the engine core has the request, or the call has failed."""
        try:
            llm = self._running
            check_request(request, self._checkpoint, self._max_model_len, self._is_guided)
        except BaseException:
            submitted.set()
            raise
        context_version = self._weights.context_version
        sampling = asyncio.create_task(self._sample(llm, request, submitted))
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
        return result_of(request, completion, self._checkpoint, context_version)

    async def generate_together(self, requests: Sequence[SequenceRequest]) -> list[SequenceResult]:
        """See Engine. The prefix cache is cleared first, and weights are not updated meanwhile.

        Raises an ExceptionGroup of the errors of `generate`.
        """
        async with self._weights.lock, asyncio.TaskGroup() as together:
            llm = self._running
            await llm.pause_generation(mode="keep", clear_cache=True)
            try:
                submitted = [asyncio.Event() for _ in requests]
                tasks = [
                    together.create_task(self._generate(request, event))
                    for request, event in zip(requests, submitted, strict=True)
                ]
                # The engine core gets calls in their order: what was submitted now comes before the resume.
                for event in submitted:
                    await event.wait()
            finally:
                await llm.resume_generation()
        return [task.result() for task in tasks]

    async def update_weights(self, version: int, buckets: BucketStream) -> None:
        """See Engine.

        Running sequences are preempted, and resume after a prefill of their context under the new weights: from the
        next token on, log-probabilities are those of the new weights alone. Without `rollout.recompute_on_swap` they
        go on with the keys and values that they have.
        Raises WeightSyncError; when a bucket does not fit, the engine goes on with its old weights,
        and when loading fails half-way, it refuses all further work.
        """
        _ = self._running  # else it raises
        await answer_or_death(self._weights.update(version, buckets), self, WeightSyncError)

    async def sleep(self) -> None:
        """See Engine: vLLM's first level. The second one drops the weights, too, of which an update brings back what
        trains: not what is frozen, which under LoRA is all of the base.

        A weight update that comes meanwhile is staged, and swapped in after `wake`.
        """
        if self._is_asleep:
            return
        llm = self._running
        await self._weights.lock.acquire()  # until `wake`: a swap would touch what is not there, its end go on sampling
        self._is_asleep = True  # whatever becomes of the call: `wake` is then not in vain
        await self._moved(llm.sleep(level=1, mode="keep"), "cannot sleep")

    async def wake(self) -> None:
        """See Engine."""
        if self._is_asleep:
            await self._moved(self._running.wake_up(), "cannot wake")
            self._is_asleep = False
            self._weights.lock.release()

    async def _moved(self, moving: Coroutine[Any, Any, Any], what: str) -> None:
        try:
            await answer_or_death(moving, self, RolloutError)
        except RolloutError:
            raise
        except Exception as error:
            raise RolloutError(f"the vLLM engine {what}: {error!r}") from error

    async def check_alive(self) -> None:
        """See Engine. The engine core answers between two of its steps; vLLM's own `check_health` asks nobody."""
        try:
            await answer_or_death(self._running.get_weight_version(), self, RolloutError)
        except RolloutError:
            raise
        except Exception as error:
            raise RolloutError(f"the vLLM engine does not answer: {error!r}") from error

    async def join_collective(self, place: GroupPlace) -> None:
        """See `rollout.engine.CollectiveReceiver`. Its workers take `tensor_parallel_size` ranks."""
        _ = self._running  # else it raises
        await answer_or_death(self._weights.join(place), self, WeightSyncError)

    async def receive_collective(self, version: int, layout: Sequence[TensorInfo], bucket_bytes: int) -> None:
        """See `rollout.engine.CollectiveReceiver`."""
        _ = self._running  # else it raises
        await answer_or_death(self._weights.receive(version, layout, bucket_bytes), self, WeightSyncError)

    async def abort_collective(self) -> None:
        """See `rollout.engine.CollectiveReceiver`."""
        _ = self._running  # else it raises
        await answer_or_death(self._weights.leave(), self, WeightSyncError)

    async def close(self) -> None:
        """End vLLM's processes; safe to call twice. Requests that still run end with RolloutError."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        for sampling in self._sampling:
            sampling.cancel()
        await asyncio.gather(*self._sampling, return_exceptions=True)
        self._weights.close()
        # Not in a thread: vLLM's output handler, in this loop, would take the end for a failure.
        llm.shutdown()
        # Its finalizer shuts down once more, and where the interpreter is ending by then, it prints an error.
        llm.shutdown = _already_shut_down
        end_scratch(self._scratch)

    @property
    def _running(self) -> AsyncLLM:
        self._check_usable()
        if self._llm is None:
            raise RolloutError("the vLLM engine is not running: it was closed")
        return self._llm

    def _check_usable(self) -> None:
        if self._weights.broken is not None:
            raise RolloutError(self._weights.broken)

    async def _sample(self, llm: AsyncLLM, request: SequenceRequest, submitted: asyncio.Event) -> CompletionOutput:
        """Submit a request and wait for its end: vLLM's own `generate` in two parts, of which the first can be seen."""
        # A plan's blocks may lack the unconditional stream, which a picture reads: neither finds the other's prefix.
        salt = f"{request.phase} {self._weights.prefix_key}"
        prompt = {"prompt_token_ids": request.prompt_ids.tolist(), "cache_salt": salt}
        try:
            try:
                parameters = sampling_params(request, self._checkpoint)
                output = await llm.add_request(request.request_id, prompt, parameters)
            finally:
                submitted.set()
            try:
                completion: CompletionOutput = (await output.get()).outputs[0]  # FINAL_ONLY: there is one
            except asyncio.CancelledError:
                await llm.abort(output.request_id, internal=True)
                raise
            finally:
                output.close()
        except Exception as error:
            raise RolloutError(f"the vLLM engine failed at request {request.request_id}: {error!r}") from error
        return completion


def _already_shut_down(timeout: float | None = None) -> None:
    """In place of `AsyncLLM.shutdown`, once that has been called."""
