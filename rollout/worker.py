"""A rollout worker: an engine, a picture decoder, and the groups they roll. A plain class, no Ray.

    roll_group(request) ─► GroupSampler ─┬─► Engine.generate, for all groups at once
                                         └─► BatchedDecoder ─► ImageDecoder, in a thread
    update_weights(version, buckets) ─► Engine, between two tokens

All methods run in one event loop; many `roll_group` calls share the engine's batch, and nothing
here blocks the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import torch

from configs.errors import RolloutError, WeightSyncError
from configs.schema import RolloutConfig, RunConfig
from rollout.engine import Engine
from rollout.group_sampler import GroupSampler, SamplingSettings
from rollout.pictures import BatchedDecoder, ImageDecoder
from rollout.prompts import Conversation
from rollout.records import GroupRequest, GroupRollout, UInt8Array, WeightBucket
from rollout.transformers_engine import TransformersEngine
from rollout.vllm import VllmEngine, context_length


class RolloutWorker:
    """Rolls groups of `config.rollout` with the policy of `model_path` (a folder or hub id)."""

    def __init__(self, model_path: str, config: RunConfig, worker_id: str) -> None:
        self._model_path = model_path
        self._config = config
        self._worker_id = worker_id
        self._engine = create_engine(
            model_path,
            config.rollout,
            config.model.dtype,
            config.model.revision,
            config.algorithm.records_sampled_logprobs,
            config.run.deterministic,
        )
        self._sampler: GroupSampler | None = None

    async def start(self) -> None:
        """Load the policy and the VQ model.

        Raises ModelError when the checkpoint cannot be used, and ConfigError when prompt, CoT and
        picture do not fit its context.
        """
        self._sampler = await start_sampler(
            self._engine,
            self._model_path,
            self._config.rollout,
            self._worker_id,
            self._config.model.revision,
            deterministic=self._config.run.deterministic,
        )

    async def roll_group(self, request: GroupRequest) -> tuple[GroupRollout, UInt8Array]:
        """See `GroupSampler.sample`."""
        if self._sampler is None:
            raise RolloutError(f"rollout worker {self._worker_id} has not been started")
        return await self._sampler.sample(request)

    async def update_weights(self, version: int, buckets: Sequence[WeightBucket]) -> None:
        """See `Engine.update_weights`."""
        await self._engine.update_weights(version, buckets)

    async def join_collective(self, master_address: str, master_port: int, rank_offset: int, world_size: int) -> None:
        """See `VllmEngine.init_collective`. Raises WeightSyncError with another engine."""
        await self._vllm_engine().init_collective(master_address, master_port, rank_offset, world_size)

    async def receive_collective(
        self, version: int, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        """See `VllmEngine.receive_collective`. Raises WeightSyncError with another engine."""
        await self._vllm_engine().receive_collective(version, names, dtypes, shapes)

    def _vllm_engine(self) -> VllmEngine:
        if not isinstance(self._engine, VllmEngine):
            raise WeightSyncError("weights by NCCL need rollout.engine vllm")
        return self._engine

    @property
    def weight_version(self) -> int:
        return self._engine.weight_version

    @property
    def is_usable(self) -> bool:
        """See `Engine`."""
        return self._engine.is_usable

    async def close(self) -> None:
        """Free everything; safe to call twice."""
        self._sampler = None
        await self._engine.close()


async def start_sampler(
    engine: Engine,
    model_path: str,
    config: RolloutConfig,
    worker_id: str,
    revision: str | None = None,
    with_cot: bool = True,
    deterministic: bool = False,
) -> GroupSampler:
    """Start the engine, load the VQ model, and put a GroupSampler on them. Raises as `RolloutWorker.start`."""
    conversation = Conversation.from_pretrained(model_path, config.system_prompt, config.instruction, revision)
    checkpoint, device = conversation.checkpoint, device_of(config)
    context_length(config, checkpoint)  # raises when it is too short
    if device == "cpu":
        torch.set_num_threads(config.threads_per_worker or 1)
    await engine.start()
    decoder = await asyncio.to_thread(ImageDecoder, model_path, device, config.decode_batch_size, revision)
    settings = SamplingSettings(
        max_prompt_tokens=config.max_prompt_tokens,
        max_cot_tokens=config.max_cot_tokens if with_cot else 0,
        num_image_tokens=checkpoint.num_image_tokens,
        guidance_scale=config.guidance_scale,
        temperature=config.temperature,
    )
    batched = BatchedDecoder(decoder.decode, config.decode_batch_size)
    return GroupSampler(engine, conversation, batched, settings, worker_id, deterministic)


def device_of(config: RolloutConfig) -> str:
    """The torch device of a worker's models."""
    return "cuda" if config.gpus_per_worker > 0 else "cpu"


def create_engine(
    model_path: str,
    config: RolloutConfig,
    dtype: str,
    revision: str | None = None,
    sampled_logprobs: bool = False,
    deterministic: bool = False,
) -> Engine:
    """The engine that `config.engine` names, not started. sampled_logprobs: see `rollout.engine.SequenceResult`;
    deterministic: see `Engine.generate_together`."""
    if config.engine == "vllm":
        return VllmEngine(model_path, config, dtype, revision, sampled_logprobs, deterministic)
    return TransformersEngine(model_path, dtype, device_of(config), revision, sampled_logprobs)
