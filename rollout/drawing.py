"""Image generation outside training: one engine, one group of pictures for each prompt.

prompts ─► plan_rollout (context, memory) ─► engine + GroupSampler ─► sink(group, pictures), as each finishes
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

import torch
from transformers.utils import logging

from configs.errors import ConfigError
from configs.schema import RolloutConfig
from rollout.drawing_options import DrawingOptions
from rollout.engine import EngineSettings
from rollout.prompts import Conversation
from rollout.records import GroupRequest, GroupRollout, Prompt, UInt8Array, derive_seed
from rollout.worker import make_sampler, start_engine

DEFAULT_COT_TOKENS = 128
MAX_SEQUENCES = 128
"""Sequences that run at once."""
_CPU_SEQUENCES = 16
"""Sequences for which a CPU's key-value cache has room at least; more of them take turns."""


async def draw(
    options: DrawingOptions,
    prompts: Sequence[Prompt],
    sink: Callable[[GroupRollout, UInt8Array], None],
    only: Sequence[int] | None = None,
) -> None:
    """Draw `options.num_images` pictures of each prompt; `sink` gets each group with its pictures.

    only: places of the prompts to draw, where the others are drawn already; a prompt's pictures depend on its place.
    Raises ConfigError, DataError or ModelError when it cannot begin, RolloutError when the engine fails.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    conversation = Conversation.from_pretrained(options.model, revision=options.revision)
    config = plan_rollout(options, conversation, prompts)
    dtype = options.dtype or ("bfloat16" if config.gpus_per_worker else "float32")
    settings = EngineSettings(options.model, config, dtype, options.revision)
    engine = await start_engine(settings)
    try:
        sampler = await make_sampler(engine, conversation, settings, "drawing", with_cot=not options.no_cot)
        # The slow engine gains nothing from company: one group after the other shows its pictures sooner.
        num_groups_at_once = math.ceil(MAX_SEQUENCES / options.num_images) if options.engine == "vllm" else 1
        places = asyncio.Semaphore(num_groups_at_once)

        async def draw_group(sequence: int, prompt: Prompt) -> None:
            async with places:
                rollout, pictures = await sampler.sample(_request(options, sequence, prompt))
            sink(rollout, pictures)

        wanted = [(sequence, prompts[sequence]) for sequence in (range(len(prompts)) if only is None else only)]
        drawing = [asyncio.create_task(draw_group(sequence, prompt)) for sequence, prompt in wanted]
        try:
            await asyncio.gather(*drawing)
        finally:
            for task in drawing:
                task.cancel()
    finally:
        await engine.close()


def plan_rollout(options: DrawingOptions, conversation: Conversation, prompts: Sequence[Prompt]) -> RolloutConfig:
    """The rollout config of these prompts: a context length for the longest one, and memory for its KV cache.

    Raises PromptTooLong (a DataError) when a prompt leaves no room for plan and picture.
    """
    checkpoint = conversation.checkpoint
    room = checkpoint.max_positions - checkpoint.num_image_tokens
    least_cot_tokens = 1 if options.no_cot else (options.max_cot_tokens or 1)
    longest = conversation.longest(prompts, room - least_cot_tokens, with_cot=not options.no_cot)
    max_prompt_tokens = max(4, longest)
    max_cot_tokens = 1 if options.no_cot else (options.max_cot_tokens or min(DEFAULT_COT_TOKENS, room - longest))
    on_gpu = _device(options.device) == "cuda"
    num_sequences = min(MAX_SEQUENCES, len(prompts) * options.num_images)
    num_tokens = max_prompt_tokens + max_cot_tokens + checkpoint.num_image_tokens
    text = checkpoint.config.text_config
    # Keys and values of both streams, 4 bytes a number at most; half as much again for blocks that are not full.
    token_bytes = 1.5 * 4 * 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    at_once = min(num_sequences, _CPU_SEQUENCES)
    return RolloutConfig(
        engine=options.engine,
        gpus_per_worker=1.0 if on_gpu else 0.0,
        threads_per_worker=None if on_gpu else torch.get_num_threads(),
        max_prompt_tokens=max_prompt_tokens,
        max_cot_tokens=max_cot_tokens,
        guidance_scale=options.guidance_scale or checkpoint.guidance_scale,
        temperature=options.temperature,
        max_num_seqs=num_sequences,
        kv_cache_gib=None if on_gpu else max(0.1, token_bytes * num_tokens * at_once / 2**30),
        enforce_eager=not on_gpu,  # on CPUs, compiling takes longer than the pictures do
    )


def _request(options: DrawingOptions, sequence: int, prompt: Prompt) -> GroupRequest:
    return GroupRequest(
        sequence=sequence,
        attempt=0,
        prompt=prompt,
        group_size=options.num_images,
        images_per_cot=options.images_per_cot,
        seed=derive_seed(options.seed, "drawing", sequence),
    )


def _device(wanted: str | None) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: PyTorch finds no CUDA GPU here; use cpu")
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")
