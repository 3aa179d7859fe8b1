"""A rollout worker: an engine, a picture decoder, and the groups they roll. A plain class, no Ray.

    roll_group(request) ─► GroupSampler ─┬─► Engine.generate, for all groups at once
                                         └─► BatchedDecoder ─► ImageDecoder, in a thread
    update_weights(version, buckets) ─► Engine, between two tokens

All methods run in one event loop. Concurrent `roll_group` calls share the engine's batch (continuous batching), and
nothing here blocks the loop.
"""

from __future__ import annotations

import asyncio

import torch

from configs.errors import WeightSyncError
from configs.schema import RunConfig
from rollout.engine import CollectiveReceiver, Engine, EngineFigures, EngineSettings
from rollout.group_sampler import GroupSampler, SamplingSettings
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.pictures import BatchedDecoder, ImageDecoder
from rollout.prompts import Conversation
from rollout.records import BucketStream, GroupRequest, GroupRollout, UInt8Array
from rollout.transformers_engine import TransformersEngine
from rollout.vllm import VllmEngine, context_length


class RolloutWorker:
    """Samples groups (rollouts) with the policy that its engine holds."""

    def __init__(self, engine: Engine, sampler: GroupSampler) -> None:
        """Of a running engine and a sampler on it; `start` gives one."""
        self._engine = engine
        self._sampler = sampler

    @classmethod
    async def start(cls, model_path: str, config: RunConfig, worker_id: str, *, with_cot: bool = True) -> RolloutWorker:
        """A worker that rolls groups of `config.rollout` with the policy of `model_path` (a folder or hub id).

        with_cot: False draws from the prompts alone, which is no training. Loads the policy and the VQ model. Raises
        ModelError when the checkpoint cannot be used, and ConfigError when prompt, CoT and picture do not fit its
        context.
        """
        settings = EngineSettings.of(model_path, config)
        conversation = load_conversation(settings)
        engine = await start_engine(settings)
        try:
            return cls(engine, await make_sampler(engine, conversation, settings, worker_id, with_cot))
        except BaseException:
            await engine.close()
            raise

    async def roll_group(self, request: GroupRequest) -> tuple[GroupRollout, UInt8Array]:
        """See `GroupSampler.sample`."""
        return await self._sampler.sample(request)

    async def probe(self, request: GroupRequest, num_tokens: int) -> GroupRollout:
        """See `GroupSampler.probe`."""
        return await self._sampler.probe(request, num_tokens)

    async def update_weights(self, version: int, buckets: BucketStream) -> None:
        """See `Engine.update_weights`."""
        await self._engine.update_weights(version, buckets)

    async def sleep(self) -> None:
        """See `Engine`. The decoder stays where it is, without the memory of its last pictures."""
        await self._engine.sleep()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    async def wake(self) -> None:
        """See `Engine`."""
        await self._engine.wake()

    @property
    def collective(self) -> CollectiveReceiver:
        """See `Engine`. Raises WeightSyncError when the engine has none."""
        collective = self._engine.collective
        if collective is None:
            raise WeightSyncError("weights by broadcast need rollout.engine vllm with weight_sync.staged")
        return collective

    @property
    def figures(self) -> EngineFigures | None:
        """See `Engine`."""
        return self._engine.figures

    @property
    def weight_version(self) -> int:
        return self._engine.weight_version

    @property
    def is_usable(self) -> bool:
        """See `Engine`."""
        return self._engine.is_usable

    async def check_alive(self) -> None:
        """See `Engine`."""
        await self._engine.check_alive()

    async def close(self) -> None:
        """Free everything; safe to call twice."""
        await self._engine.close()


def load_conversation(settings: EngineSettings) -> Conversation:
    """The tokenizer, chat template and words of the checkpoint. Raises ModelError."""
    rollout = settings.rollout
    return Conversation.of_run(settings.model_path, rollout, settings.revision)


async def start_engine(settings: EngineSettings) -> Engine:
    """The engine that `rollout.engine` names, with its model loaded.

    On a CPU this also sets the number of PyTorch's threads, of the whole process, to `rollout.threads_per_worker`
    (1 when that is null). Raises ModelError when the checkpoint cannot be used, and ConfigError when prompt, CoT and
    picture do not fit its context.
    """
    context_length(settings.rollout, JanusCheckpoint.from_pretrained(settings.model_path, settings.revision))
    if settings.device == "cpu":
        torch.set_num_threads(settings.rollout.threads_per_worker or 1)
    if settings.rollout.engine == "vllm":
        return await VllmEngine.start(settings)
    return await TransformersEngine.start(settings)


async def make_sampler(
    engine: Engine, conversation: Conversation, settings: EngineSettings, worker_id: str, with_cot: bool = True
) -> GroupSampler:
    """A GroupSampler on a running engine, with the VQ model of `settings`. Raises ModelError when it has none."""
    rollout = settings.rollout
    decoder = await asyncio.to_thread(
        ImageDecoder, settings.model_path, settings.device, rollout.decode_batch_size, settings.revision
    )
    sampling = SamplingSettings(
        max_prompt_tokens=rollout.max_prompt_tokens,
        max_cot_tokens=rollout.max_cot_tokens if with_cot else 0,
        num_image_tokens=conversation.checkpoint.num_image_tokens,
        guidance_scale=rollout.guidance_scale,
        temperature=rollout.temperature,
        cot_top_k=rollout.cot_top_k,
    )
    batched = BatchedDecoder(decoder.decode, rollout.decode_batch_size)
    return GroupSampler(engine, conversation, batched, sampling, worker_id, settings.deterministic)
