"""Rollout of one group: the trajectories and pictures of a prompt.

    prompt ─► semantic prompt ─┬─► CoT 0 ─► image prompt ─┬─► image tokens 0 ─► picture 0 ─┐
                               │                          └─► image tokens 1 ─► picture 1 ─┤
                               └─► CoT 1 ─► image prompt ─┬─► …                            ├─► GroupRollout,
                                                          └─► …                            │   pictures
      every CoT and every picture is a task of its own; a short CoT's pictures begin while ┘
      longer CoTs are still being written, and share the engine's batch with them

The sampled tokens depend on the weights, the prompt and `request.seed` only: not on the attempt, the worker, or the
order in which sequences finish. So a rollout that is repeated under the same weights gives the same group.

`deterministic` makes this hold bit for bit. The rounding of a matrix product may depend on the size of the batch, so
groups are then sampled one after the other: all CoTs of a group as one batch, then all its pictures as another.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, replace

import numpy as np

from configs.errors import RolloutError
from rollout.engine import Engine, SequenceRequest, SequenceResult
from rollout.pictures import BatchedDecoder
from rollout.prompts import Conversation
from rollout.records import GroupRequest, GroupRollout, Int32Array, Trajectory, UInt8Array, derive_seed


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How sequences are sampled; fields as in `configs.schema.RolloutConfig`."""

    max_prompt_tokens: int
    max_cot_tokens: int
    """0 draws from the prompt alone, without a semantic CoT."""
    num_image_tokens: int
    guidance_scale: float
    temperature: float
    cot_top_k: int | None = None


@dataclass(frozen=True, slots=True)
class _Cot:
    """A semantic CoT with its prompt; empty when none is asked for."""

    prompt_ids: Int32Array
    sampled: SequenceResult | None
    text: str


class GroupSampler:
    """Samples groups on one engine; any number at once, in one event loop."""

    def __init__(
        self,
        engine: Engine,
        conversation: Conversation,
        decoder: BatchedDecoder,
        settings: SamplingSettings,
        worker_id: str,
        deterministic: bool = False,
    ) -> None:
        self._engine = engine
        self._conversation = conversation
        self._decoder = decoder
        self._settings = settings
        self._worker_id = worker_id
        self._serial = itertools.count()
        self._deterministic = deterministic
        self._turn = asyncio.Lock()

    async def sample(self, request: GroupRequest) -> tuple[GroupRollout, UInt8Array]:
        """The group, and its pictures as uint8 [G, height, width, 3], in the order of its trajectories.

        Raises PromptTooLong when the prompt exceeds `max_prompt_tokens`, and RolloutError, ending the
        group's other sequences, when one of them fails.
        """
        num_cots, rest = divmod(request.group_size, request.images_per_cot)
        if rest:
            raise ValueError(
                f"group_size {request.group_size} is no multiple of images_per_cot {request.images_per_cot}"
            )
        started_s = time.time()
        prompt_ids = self._semantic_prompt(request.prompt.text)
        try:
            async with asyncio.TaskGroup() as group:
                sample = self._sample_in_turn if self._deterministic else self._sample_branches
                sampling = group.create_task(sample(request, num_cots, prompt_ids))
        except ExceptionGroup as errors:
            error = _first_leaf(errors)
            raise RolloutError(
                f"group {request.sequence}, attempt {request.attempt}, prompt {request.prompt.prompt_id}: {error}"
            ) from error
        drawn = sampling.result()
        rollout = GroupRollout(
            request=request,
            trajectories=tuple(trajectory for trajectory, _ in drawn),
            worker_id=self._worker_id,
            started_s=started_s,
            finished_s=time.time(),
        )
        return rollout, np.stack([picture for _, picture in drawn])

    async def probe(self, request: GroupRequest, num_tokens: int) -> GroupRollout:
        """A group of `num_tokens` tokens at most a CoT and a picture, without pictures, to compare engine and learner.

        The pictures are begun from the prompt alone, so that they need not wait for the CoTs.
        Raises what `sample` raises.
        """
        settings = self._settings
        short = replace(
            settings,
            max_cot_tokens=min(num_tokens, settings.max_cot_tokens),
            num_image_tokens=min(num_tokens, settings.num_image_tokens),
        )
        sampler = GroupSampler(self._engine, self._conversation, self._decoder, short, self._worker_id)
        sampler._serial = self._serial
        started_s, nothing = time.time(), _Cot(np.zeros(0, np.int32), None, "")
        prompt_ids = sampler._semantic_prompt(request.prompt.text)
        image_prompt_ids = sampler._image_prompt(request, nothing)
        places = range(request.group_size)
        async with self._turn, asyncio.TaskGroup() as group:
            cots = [group.create_task(sampler._sample_cot(request, place, prompt_ids)) for place in places]
            images = [sampler._image_request(request, place, image_prompt_ids) for place in places]
            drawn = [group.create_task(self._engine.generate(image)) for image in images]
        trajectories = [
            sampler._trajectory(request, place, cots[place].result(), image_prompt_ids, drawn[place].result())
            for place in places
        ]
        return GroupRollout(request, tuple(trajectories), self._worker_id, started_s, time.time())

    def _semantic_prompt(self, prompt: str) -> Int32Array:
        settings, conversation = self._settings, self._conversation
        conversation.check_length(conversation.image_prompt(prompt, ""), settings.max_prompt_tokens, prompt)
        if settings.max_cot_tokens == 0:
            return np.zeros(0, dtype=np.int32)
        prompt_ids = conversation.semantic_prompt(prompt)
        conversation.check_length(prompt_ids, settings.max_prompt_tokens, prompt)
        return prompt_ids

    async def _sample_branches(
        self, request: GroupRequest, num_cots: int, prompt_ids: Int32Array
    ) -> list[tuple[Trajectory, UInt8Array]]:
        """All branches concurrently, in one batch with the engine's other requests."""
        async with asyncio.TaskGroup() as group:
            branches = [group.create_task(self._sample_branch(request, index, prompt_ids)) for index in range(num_cots)]
        return [drawn for branch in branches for drawn in branch.result()]

    async def _sample_in_turn(
        self, request: GroupRequest, num_cots: int, prompt_ids: Int32Array
    ) -> list[tuple[Trajectory, UInt8Array]]:
        """One group at a time: its CoTs as one batch, then its pictures as one, for the VQ decoder, too."""
        async with self._turn:
            return await self._sample_together(request, num_cots, prompt_ids)

    async def _sample_together(
        self, request: GroupRequest, num_cots: int, prompt_ids: Int32Array
    ) -> list[tuple[Trajectory, UInt8Array]]:
        cots = [_Cot(prompt_ids, None, "")] * num_cots
        if self._settings.max_cot_tokens > 0:
            requests = [self._cot_request(request, index, prompt_ids) for index in range(num_cots)]
            written = await self._engine.generate_together(requests)
            cots = [self._cot(prompt_ids, sampled) for sampled in written]
        cot_of_picture = [cots[index // request.images_per_cot] for index in range(request.group_size)]
        prompts = [self._image_prompt(request, cot) for cot in cot_of_picture]
        drawings = await self._engine.generate_together(
            [self._image_request(request, index, prompt) for index, prompt in enumerate(prompts)]
        )
        pictures = await asyncio.gather(*(self._decoder.decode(drawn.token_ids) for drawn in drawings))
        parts = zip(cot_of_picture, prompts, drawings, pictures, strict=True)
        return [
            (self._trajectory(request, index, cot, prompt, drawn), picture)
            for index, (cot, prompt, drawn, picture) in enumerate(parts)
        ]

    async def _sample_branch(
        self, request: GroupRequest, cot_index: int, prompt_ids: Int32Array
    ) -> list[tuple[Trajectory, UInt8Array]]:
        """One CoT and the pictures drawn from it."""
        cot = await self._sample_cot(request, cot_index, prompt_ids)
        image_prompt_ids = self._image_prompt(request, cot)
        first = cot_index * request.images_per_cot
        async with asyncio.TaskGroup() as group:
            pictures = [
                group.create_task(self._sample_picture(request, index, cot, image_prompt_ids))
                for index in range(first, first + request.images_per_cot)
            ]
        return [picture.result() for picture in pictures]

    async def _sample_cot(self, request: GroupRequest, cot_index: int, prompt_ids: Int32Array) -> _Cot:
        if self._settings.max_cot_tokens == 0:
            return _Cot(prompt_ids, None, "")
        return self._cot(prompt_ids, await self._engine.generate(self._cot_request(request, cot_index, prompt_ids)))

    async def _sample_picture(
        self, request: GroupRequest, index: int, cot: _Cot, image_prompt_ids: Int32Array
    ) -> tuple[Trajectory, UInt8Array]:
        drawn = await self._engine.generate(self._image_request(request, index, image_prompt_ids))
        picture = await self._decoder.decode(drawn.token_ids)
        return self._trajectory(request, index, cot, image_prompt_ids, drawn), picture

    def _cot_request(self, request: GroupRequest, cot_index: int, prompt_ids: Int32Array) -> SequenceRequest:
        return SequenceRequest(
            request_id=self._request_id(request, f"cot-{cot_index}"),
            phase="cot",
            prompt_ids=prompt_ids,
            max_new_tokens=self._settings.max_cot_tokens,
            temperature=self._settings.temperature,
            guidance_scale=1.0,
            seed=derive_seed(request.seed, "cot", cot_index),
            top_k=self._settings.cot_top_k,
        )

    def _cot(self, prompt_ids: Int32Array, sampled: SequenceResult) -> _Cot:
        return _Cot(prompt_ids, sampled, self._conversation.decode_cot(sampled.token_ids))

    def _image_prompt(self, request: GroupRequest, cot: _Cot) -> Int32Array:
        # A CoT's text may need more tokens than were sampled; it then loses its end, in the picture's prompt only.
        return self._conversation.image_prompt(request.prompt.text, cot.text, self._settings.max_cot_tokens)

    def _image_request(self, request: GroupRequest, index: int, prompt_ids: Int32Array) -> SequenceRequest:
        return SequenceRequest(
            request_id=self._request_id(request, f"image-{index}"),
            phase="image",
            prompt_ids=prompt_ids,
            max_new_tokens=self._settings.num_image_tokens,
            temperature=self._settings.temperature,
            guidance_scale=self._settings.guidance_scale,
            seed=derive_seed(request.seed, "image", index),
        )

    def _trajectory(
        self, request: GroupRequest, index: int, cot: _Cot, image_prompt_ids: Int32Array, drawn: SequenceResult
    ) -> Trajectory:
        nothing = np.zeros(0, np.int32)
        return Trajectory(
            semantic_prompt_ids=cot.prompt_ids,
            cot_ids=nothing if cot.sampled is None else cot.sampled.token_ids,
            cot_logprobs=np.zeros(0, np.float32) if cot.sampled is None else cot.sampled.logprobs,
            image_prompt_ids=image_prompt_ids,
            image_ids=drawn.token_ids,
            image_logprobs=drawn.logprobs,
            cot_text=cot.text,
            guidance_scale=self._settings.guidance_scale,
            seed=derive_seed(request.seed, "image", index),
            cot_versions=nothing if cot.sampled is None else cot.sampled.weight_versions,
            image_versions=drawn.weight_versions,
            image_unconditional_logprobs=drawn.unconditional_logprobs,
            cot_context_version=None if cot.sampled is None else cot.sampled.context_version,
            image_context_version=drawn.context_version,
        )

    def _request_id(self, request: GroupRequest, what: str) -> str:
        # A number of our own: a group given up by its caller and rolled again may overlap with itself.
        return f"{next(self._serial)}-group-{request.sequence}-{what}"


def _first_leaf(errors: BaseException) -> BaseException:
    """The first error that is no group of errors: task groups nest."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors
